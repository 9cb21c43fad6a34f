"""A teacher's outputs on disk, keyed so that a wrong one cannot be read."""

from tutelage.store.outputs import ROWS as ROWS
from tutelage.store.outputs import Recorded as Recorded
from tutelage.store.outputs import Store as Store
from tutelage.store.outputs import size_of as size_of
from tutelage.store.top import BOUND as BOUND
from tutelage.store.top import StoreError as StoreError
from tutelage.store.top import Top as Top
