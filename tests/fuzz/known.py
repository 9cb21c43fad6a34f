"""Faults that inputs are known to cause until they are mended: what is taken out here must be mended, and no more."""

KNOWN: dict[str, tuple[str, ...]] = {
    "recipes": ("control characters",),
    "overrides": ("control characters",),
    "tensors": ("SafetensorError in checkpoints.py",),
    "state": ("TypeError in checkpoints.py", "KeyError in checkpoints.py"),
    "pickles": ("error in io.py",),
    "comparison": ("AttributeError in reading.py", "TypeError in reading.py"),
    "outputs": ("KeyError in ", "TypeError in ", "control characters"),
}
"""By target, how the reasons begin that `tests.fuzz.targets.judge` gives. Inputs of each are in the corpus."""
_HOSTILE = {
    "what it holds is printed as it is": """
        weights/name-with-an-escape weights/name-with-a-line-break weights/name-with-a-zero-byte
        pickles/a-name-that-forges-a-line recipes/a-key-that-forges-a-line recipes/a-key-with-an-escape
        recipes/utf-16-without-a-mark recipes/a-zero-byte""",
    "a name of a megabyte is printed whole": "weights/name-very-long recipes/a-key-of-a-megabyte",
    "the error is not of this package": """
        pickles/a-text-of-4-gigabytes pickles/a-tensor-of-nothing pickles/a-picture
        recipes/a-hexadecimal-of-100000-digits recipes/a-number-of-base-60
        manifest/a-folder evaluation/a-folder card/a-folder outputs/a-folder card/a-link-to-itself
        outputs/deep-in-a-key outputs/not-a-number outputs/a-key-twice outputs/utf-16 outputs/half-a-letter
        outputs/an-escape outputs/other-types outputs/a-text-of-a-megabyte
        checksums/a-device state/deep state/deep-objects
        tensors/header-of-8-exabytes tensors/header-of-1-terabyte tensors/header-longer-than-the-file
        tensors/header-of-no-length tensors/header-no-json tensors/header-a-list tensors/header-deep
        tensors/offsets-that-overlap tensors/offsets-beyond-the-end tensors/offsets-backwards
        tensors/offsets-negative tensors/offsets-with-a-hole tensors/shape-that-overflows tensors/shape-negative
        tensors/shape-not-the-data tensors/type-unknown tensors/name-of-half-a-letter tensors/metadata-no-text
        tensors/empty tensors/a-pickle""",
    "it takes too long": """
        recipes/aliases-that-explode-in-a-key-that-is-read recipes/keys-very-many recipes/a-file-of-20-megabytes
        recipes/a-pipe recipes/a-device manifest/a-pipe evaluation/a-pipe card/a-pipe outputs/a-pipe
        checksums/a-pipe state/a-pipe tensors/a-pipe tensors/a-device""",
}
HOSTILE = {name: reason for reason, names in _HOSTILE.items() for name in names.split()}
"""Hostile files that are not yet refused as they should be, and why."""


def is_known(target: str, kind: str) -> bool:
    """Whether a fault is known."""
    return any(kind.startswith(begin) for begin in KNOWN.get(target, ()))
