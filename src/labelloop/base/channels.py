"""Names of the channels of an image, as nnU-Net's ``channel_names`` gives them: what data sets and plans say alike."""

from typing import Annotated

from pydantic import AfterValidator, Field


def several(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of channels. Raises ValueError for one: then there is nothing to tell apart."""
    if len(names) == 1:
        raise ValueError("names one channel; leave it out, as images of one channel go by their modality")
    return names


ChannelNames = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=64)], ...], Field(max_length=8), AfterValidator(several)
]
"""Two or more names in the order of the files; none: images of one channel."""


NORMALIZED_OTHERWISE = ("nonorm", "rescale_to_0_1", "rgb_to_0_1")
"""Names by which nnU-Net asks for a normalization that plans of labelloop's do not have, in small letters."""


def modality_of(channel: str) -> str:
    """Return the modality as which a channel counts, by its name: CT, or else MR, as nnU-Net tells them apart."""
    return "CT" if channel.upper() == "CT" else "MR"
