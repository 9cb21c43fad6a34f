"""The engine: the training loop, evaluation and checkpoints. It names no method, model or data set."""

from tutelage.engine.chance import Chance as Chance
from tutelage.engine.checkpoints import CheckpointError as CheckpointError
from tutelage.engine.checkpoints import Checkpoints as Checkpoints
from tutelage.engine.checkpoints import Saved as Saved
from tutelage.engine.evaluate import Answers as Answers
from tutelage.engine.evaluate import HeldOut as HeldOut
from tutelage.engine.evaluate import NonFiniteError as NonFiniteError
from tutelage.engine.evaluate import answer as answer
from tutelage.engine.evaluate import better_than_chance as better_than_chance
from tutelage.engine.evaluate import judge as judge
from tutelage.engine.loop import Keep as Keep
from tutelage.engine.loop import Pupil as Pupil
from tutelage.engine.loop import Together as Together
from tutelage.engine.loop import accelerator_on as accelerator_on
from tutelage.engine.loop import fit as fit
from tutelage.engine.loop import plain_state as plain_state
from tutelage.engine.loop import restore_random as restore_random
from tutelage.engine.settings import SGD as SGD
from tutelage.engine.settings import AdamW as AdamW
from tutelage.engine.settings import Constant as Constant
from tutelage.engine.settings import Cosine as Cosine
from tutelage.engine.settings import FitSettings as FitSettings
from tutelage.engine.settings import MultiStep as MultiStep
from tutelage.engine.settings import Step as Step
from tutelage.engine.until import OutOfTimeError as OutOfTimeError
from tutelage.engine.until import Until as Until
