"""Losses: pure functions of tensors; student first, teacher second, labels third, hyperparameters by keyword.

Common to all of them: tensors other than indices may have any floating dtype; everything is computed and returned in
at least float32, whether or not autocast is on, and float64 stays float64. Gradients come back in the student's own
dtype, and none reaches a teacher, detached or not, unless stated otherwise. A loss has one value per sample,
``(batch,)``, not reduced over the batch, or a single value ``()`` if it couples the samples of a batch.
"""

from tutelage.losses.batch_logits import dist as dist
from tutelage.losses.batch_logits import mlkd_batch as mlkd_batch
from tutelage.losses.batch_logits import mlkd_class as mlkd_class
from tutelage.losses.channels import affinity as affinity
from tutelage.losses.channels import inter_channel as inter_channel
from tutelage.losses.channels import nst as nst
from tutelage.losses.contrastive import bank_scores as bank_scores
from tutelage.losses.contrastive import contrast as contrast
from tutelage.losses.contrastive import crd as crd
from tutelage.losses.contrastive import log_normaliser as log_normaliser
from tutelage.losses.contrastive import moved as moved
from tutelage.losses.divergences import divergence as divergence
from tutelage.losses.divergences import transformed_matching as transformed_matching
from tutelage.losses.embeddings import cosine_distance as cosine_distance
from tutelage.losses.embeddings import embedding_mse as embedding_mse
from tutelage.losses.embeddings import in_batch_similarity as in_batch_similarity
from tutelage.losses.features import attention_transfer as attention_transfer
from tutelage.losses.features import hide as hide
from tutelage.losses.features import hint as hint
from tutelage.losses.features import prime_aware as prime_aware
from tutelage.losses.features import same_size as same_size
from tutelage.losses.features import vid as vid
from tutelage.losses.features import vitkd_generation as vitkd_generation
from tutelage.losses.features import vitkd_mimic as vitkd_mimic
from tutelage.losses.fusion import mgd as mgd
from tutelage.losses.fusion import review as review
from tutelage.losses.guided import norm_direction as norm_direction
from tutelage.losses.guided import ofd as ofd
from tutelage.losses.guided import ofd_margins as ofd_margins
from tutelage.losses.guided import srrl_regression as srrl_regression
from tutelage.losses.guided import srrl_statistics as srrl_statistics
from tutelage.losses.logits import confidence_penalty as confidence_penalty
from tutelage.losses.logits import cross_entropy as cross_entropy
from tutelage.losses.logits import ctkd as ctkd
from tutelage.losses.logits import kd as kd
from tutelage.losses.logits import kl_divergence as kl_divergence
from tutelage.losses.logits import renyi_penalty as renyi_penalty
from tutelage.losses.logits import scaled_gradient as scaled_gradient
from tutelage.losses.logits import standardise as standardise
from tutelage.losses.logits import teacher_free_kd as teacher_free_kd
from tutelage.losses.logits import ttm as ttm
from tutelage.losses.logits import weighted_kd as weighted_kd
from tutelage.losses.logits import wttm as wttm
from tutelage.losses.maps import activation_boundary as activation_boundary
from tutelage.losses.maps import factor_difference as factor_difference
from tutelage.losses.maps import factor_transfer as factor_transfer
from tutelage.losses.maps import fsp as fsp
from tutelage.losses.maps import kd_svd as kd_svd
from tutelage.losses.pairwise import correlation as correlation
from tutelage.losses.pairwise import correlation_kernel as correlation_kernel
from tutelage.losses.pairwise import pkt as pkt
from tutelage.losses.pairwise import rkd_angle as rkd_angle
from tutelage.losses.pairwise import rkd_distance as rkd_distance
from tutelage.losses.pairwise import similarity as similarity
from tutelage.losses.relations import itrd_correlation as itrd_correlation
from tutelage.losses.relations import itrd_mutual as itrd_mutual
from tutelage.losses.relations import log_power as log_power
from tutelage.losses.relations import log_sum as log_sum
from tutelage.losses.sparse import sampled_cross_entropy as sampled_cross_entropy
from tutelage.losses.sparse import top_k as top_k
from tutelage.losses.sparse import with_rest as with_rest
from tutelage.losses.targeted import dkd as dkd
from tutelage.losses.targeted import nkd as nkd
from tutelage.losses.targeted import wsld as wsld
