"""Grids of runs."""

from tutelage.studies.budget import Budget as Budget
from tutelage.studies.compare import compare as compare
from tutelage.studies.plan import Assignment as Assignment
from tutelage.studies.plan import assign as assign
from tutelage.studies.plan import jobs as jobs
from tutelage.studies.plan import rehearsals as rehearsals
from tutelage.studies.running import conduct as conduct
from tutelage.studies.schema import Study as Study
from tutelage.studies.schema import read as read
from tutelage.studies.share import end_with_parent as end_with_parent
from tutelage.studies.share import share as share
