"""Statistics: the only place that computes intervals and tests."""

from snellen.stats.groups import Grouping, attribute_groups, group_attribute
from snellen.stats.hypothesis_tests import (
    Alternative,
    benjamini_hochberg,
    binomial_test,
    exceedance_p_value,
    fisher_exact,
    mcnemar_exact,
    permutation_test,
    split_coverage_test,
)
from snellen.stats.intervals import (
    Interval,
    IntervalArrays,
    bias_corrected_interval,
    bootstrap_bca,
    centred_interval,
    clopper_pearson,
    clopper_pearson_arrays,
    clopper_pearson_lower,
    newcombe_difference,
    paired_difference,
    paired_difference_counts,
    wilson,
    wilson_arrays,
)
from snellen.stats.power import minimal_detectable_effect, needed_samples
from snellen.stats.roc import Separation, separate
from snellen.stats.sequential import bernoulli_sequence, bounded_sequence

__all__ = [
    "Alternative",
    "Grouping",
    "Interval",
    "IntervalArrays",
    "Separation",
    "attribute_groups",
    "benjamini_hochberg",
    "bernoulli_sequence",
    "bias_corrected_interval",
    "binomial_test",
    "bootstrap_bca",
    "bounded_sequence",
    "centred_interval",
    "clopper_pearson",
    "clopper_pearson_arrays",
    "clopper_pearson_lower",
    "exceedance_p_value",
    "fisher_exact",
    "group_attribute",
    "mcnemar_exact",
    "minimal_detectable_effect",
    "needed_samples",
    "newcombe_difference",
    "paired_difference",
    "paired_difference_counts",
    "permutation_test",
    "separate",
    "split_coverage_test",
    "wilson",
    "wilson_arrays",
]
