"""The 1000 classes of ImageNet by word and by WordNet id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class ImageNetNames(NamedTuple):
    """One name a class, in ImageNet's order, and WordNet id -> name."""

    names: list[str]
    aliases: dict[str, str]


def imagenet_names() -> ImageNetNames:
    """The first synonym of each class; where two classes share it, the later one carries its WordNet id too."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    names: list[str] = []
    aliases: dict[str, str] = {}
    for index in range(1000):
        described = info.index_to_description(index).split(",")[0]
        synset = info.index_to_label_name(index)
        unique = described if described not in names else f"{described} ({synset})"
        names.append(unique)
        aliases[synset] = unique
    return ImageNetNames(names, aliases)


def imagenet_aliases(names: Sequence[str]) -> dict[str, str]:
    """WordNet id -> the model's own name, for each class of a 1000-class model that is named as ImageNet's is."""
    if len(names) != 1000:
        return {}
    known = imagenet_names()
    return {
        synset: own
        for (synset, described), own in zip(known.aliases.items(), names, strict=True)
        if _word(own) == _word(described)
    }


def _word(name: str) -> str:
    """The first synonym, without what tells two classes of one name apart: "crane (n03126707)" is "crane"."""
    return name.split(",")[0].partition(" (")[0].lower()
