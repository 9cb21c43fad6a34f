"""Objectives: what a student learns from, as immutable descriptions."""

from tutelage.objectives.objective import BoundObjective as BoundObjective
from tutelage.objectives.objective import Objective as Objective
from tutelage.objectives.objective import Part as Part
from tutelage.objectives.objective import count as count
from tutelage.objectives.presets import PRESETS as PRESETS
from tutelage.objectives.presets import Preset as Preset
from tutelage.objectives.presets import confidence_penalty as confidence_penalty
from tutelage.objectives.presets import cross_entropy as cross_entropy
from tutelage.objectives.presets import from_recipe as from_recipe
from tutelage.objectives.presets import is_built_in as is_built_in
from tutelage.objectives.presets import kd as kd
from tutelage.objectives.presets import preset as preset
from tutelage.objectives.presets import renyi_penalty as renyi_penalty
from tutelage.objectives.presets import ttm as ttm
from tutelage.objectives.presets import wttm as wttm
from tutelage.objectives.schedules import Cosine as Cosine
from tutelage.objectives.schedules import Linear as Linear
from tutelage.objectives.schedules import Schedule as Schedule
from tutelage.objectives.schedules import SignedWeight as SignedWeight
from tutelage.objectives.schedules import WarmUp as WarmUp
from tutelage.objectives.schedules import Weight as Weight
from tutelage.objectives.terms import Apply as Apply
from tutelage.objectives.terms import Context as Context
from tutelage.objectives.terms import Description as Description
