"""Objectives: what a student learns from, as immutable descriptions. Presets are listed in the order of these lines."""

# ruff: noqa: I001
from tutelage.objectives.methods.logits import cross_entropy as cross_entropy, confidence_penalty as confidence_penalty
from tutelage.objectives.methods.logits import renyi_penalty as renyi_penalty, kd as kd, ttm as ttm, wttm as wttm
from tutelage.objectives.methods.logits import weighted_kd as weighted_kd
from tutelage.objectives.methods.logits import transformed_matching as transformed_matching, matching as matching
from tutelage.objectives.methods.logits import ctkd as ctkd, tekap as tekap
from tutelage.objectives.methods.logits import teacher_free_kd as teacher_free_kd, kd_matched_to as kd_matched_to
from tutelage.objectives.methods.targeted import dkd as dkd, nkd as nkd, rld as rld, wsld as wsld
from tutelage.objectives.methods.ranked import ldrld as ldrld, sdd as sdd
from tutelage.objectives.methods.divergences import abkd as abkd, abttm as abttm, abdkd as abdkd, akl as akl
from tutelage.objectives.methods.divergences import todi as todi, wkd_l as wkd_l
from tutelage.objectives.methods.sparse import top_k as top_k
from tutelage.objectives.methods.batch_logits import dist as dist, mlkd as mlkd
from tutelage.objectives.methods.features import fitnet as fitnet, attention_transfer as attention_transfer, vid as vid
from tutelage.objectives.methods.features import vitkd as vitkd
from tutelage.objectives.methods.maps import factor_transfer as factor_transfer
from tutelage.objectives.methods.maps import activation_boundary as activation_boundary, fsp as fsp, kd_svd as kd_svd
from tutelage.objectives.methods.fusion import reviewkd as reviewkd, mgd as mgd
from tutelage.objectives.methods.channels import nst as nst, ickd as ickd
from tutelage.objectives.methods.pairwise import rkd as rkd, pkt as pkt, similarity as similarity
from tutelage.objectives.methods.pairwise import correlation as correlation
from tutelage.objectives.methods.relations import itrd as itrd, srd as srd
from tutelage.objectives.methods.contrastive import crd as crd
from tutelage.objectives.methods.embeddings import cosine as cosine, embedding_mse as embedding_mse
from tutelage.objectives.methods.embeddings import in_batch_similarity as in_batch_similarity
from tutelage.objectives.methods.embeddings import embedding_distance as embedding_distance
from tutelage.objectives.methods.vocabularies import uld as uld, gold as gold
from tutelage.objectives.methods.guided import srrl as srrl, ofd as ofd, kd_plus_plus as kd_plus_plus
from tutelage.objectives.methods.layers import vkd as vkd, cwd as cwd, wkd_f as wkd_f, hidden_states as hidden_states
from tutelage.objectives.methods.layers import attention_relations as attention_relations
from tutelage.objectives.methods.views import crld as crld, two_view_mlkd as two_view_mlkd
from tutelage.objectives.methods.views import hard_labels as hard_labels, deit as deit
from tutelage.objectives.methods.moving import taid as taid, distillm2 as distillm2
from tutelage.objectives.bound import BoundObjective as BoundObjective, count as count
from tutelage.objectives.objective import Objective as Objective
from tutelage.objectives.reading import from_recipe as from_recipe, from_spec as from_spec
from tutelage.objectives.registry import PRESETS as PRESETS, Preset as Preset, is_built_in as is_built_in
from tutelage.objectives.registry import preset as preset
from tutelage.objectives.term import Apply as Apply, BindContext as BindContext, TermSpec as TermSpec
from tutelage.objectives.term import WeightedTerm as WeightedTerm
from tutelage.settings.objective import LayerPairs as LayerPairs, Names as Names
from tutelage.settings.weights import AUTO as AUTO, Automatic as Automatic, AutomaticNumber as AutomaticNumber
from tutelage.settings.weights import AutomaticWeight as AutomaticWeight, Cosine as Cosine, CosineWarmUp as CosineWarmUp
from tutelage.settings.weights import ScheduledNumber as ScheduledNumber
from tutelage.settings.weights import Linear as Linear, Schedule as Schedule, SignedWeight as SignedWeight
from tutelage.settings.weights import WarmUp as WarmUp, Weight as Weight
