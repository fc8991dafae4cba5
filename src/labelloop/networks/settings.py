"""What a recipe may set for CT-to-MR adaptation; the defaults are published. Imports nothing heavy."""

from typing import Literal

from pydantic import Field, model_validator

from labelloop.base.classes import Idle, Names, Seed, Strict


class GreySettings(Strict):
    """How intensities come to the scale from 0 to 255 (He, section 2.1)."""

    ct_level_hu: float = Field(40.0, description="middle of the CT window")
    ct_width_hu: float = Field(400.0, gt=0, description="width of the CT window; its ends become 0 and 255")
    mr_percentiles: tuple[float, float] = Field(
        (0.0, 100.0), description="percentiles that become 0 and 255; He: the extremes. 99.5 bears a few hot voxels"
    )

    @model_validator(mode="after")
    def _ordered(self) -> "GreySettings":
        low, high = self.mr_percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"mr_percentiles {low:g}, {high:g}: the first below the second, both from 0 to 100")
        return self


UPRIGHT_BY = ("in_phase", "out_of_phase", "t1w", "t2w")
"""Sequences that tell whether a patient is stored upside down, the best first; He reads the in-phase images alone.

Where fat is bright, lungs are the dark part of the body; in fat-suppressed images with contrast agent or diffusion
weighting they are not.
"""


KIDNEYS = ("right_kidney", "left_kidney")
"""Classes that say whether labels fit another sequence."""


class TransferSettings(Strict):
    """When the labels of T1W may serve another sequence: the kidney test (He, section 2.4)."""

    idle = (Idle(("both_kidneys_dsc",), lambda s: not s.both, "where `both` names no sequence"),)
    source: str = Field("t1w", min_length=1, description="sequence that labels come from")
    one_kidney_dsc: float = Field(0.85, ge=0, le=1, description="at least one kidney must exceed this, in any sequence")
    both_kidneys_dsc: float = Field(0.8, ge=0, le=1, description="both must exceed it in the sequences of `both`")
    both: Names = Field(("in_phase", "out_of_phase", "t2w", "dwi"), description="other resolution or time")
    dark_kidneys: Names = Field(("in_phase",), description="kidneys are darker than what surrounds them")
    follows: dict[str, str] = Field({"out_of_phase": "in_phase"}, description="taken together: one decision for both")
    on_images: dict[str, str] = Field(
        {"t2w": "arterial", "dwi": "arterial"}, description="registered on images, to this sequence; others on masks"
    )
    # Released code: 6 dilations, 1 opening, up to 4 closings, on voxels of 1.2 x 1.2 x 3 mm: 7.2 mm in plane, 18 in z.
    dilate_mm: float = Field(7.2, gt=0, description="margin around the T1W kidney, in plane")
    dilate_z_mm: float = Field(
        18.0, gt=0, description="the same from head to foot, the way that breathing moves kidneys"
    )
    open_mm: float = Field(1.2, ge=0, description="radius of the opening of the kidney that was found")
    close_mm: float = Field(4.8, ge=0, description="radius of the closing after it")

    @model_validator(mode="after")
    def _acyclic(self) -> "TransferSettings":
        for name in {*self.follows, *self.on_images}:
            self.partners(name)
        return self

    def partners(self, sequence: str) -> tuple[str, ...]:
        """Return the sequences whose images decide, besides the source, where ``sequence`` lies, the nearest first.

        Raises:
            ValueError: when they lead back to where they came from, or to the source.
        """
        found: list[str] = []
        following = self.follows.get(sequence) or self.on_images.get(sequence)
        while following:
            if following in (sequence, *found) or self.source in (sequence, following):
                raise ValueError(f"follows and on_images: {sequence} leads in a circle, or from or to {self.source}")
            found.append(following)
            following = self.follows.get(following) or self.on_images.get(following)
        return tuple(found)


class TranslatorSettings(Strict):
    """A 3-D CycleGAN (He, section 2.3 and Table 2; the released code where the paper is silent)."""

    kind: Literal["translator"] = Field(
        "translator", description="translates CT to images like MR; learns from images alone"
    )
    patch: tuple[int, int, int] = Field((48, 160, 160), description="voxels z, y, x; multiples of 4")
    features: int = Field(64, ge=1, description="of the first layer of generators and discriminators")
    blocks: int = Field(9, ge=1, description="residual blocks of a generator")
    layers: int = Field(3, ge=1, description="strided layers of a discriminator")
    adversarial: Literal["vanilla", "least_squares"] = Field(
        "vanilla", description="He's released code trains with cross-entropy, though its option says least squares"
    )
    cycle: float = Field(10.0, ge=0, description="weight of the cycle-consistency loss")
    identity: float = Field(5.0, ge=0, description="weight of the identity loss; released code: 0.5 x 10")
    pool: int = Field(50, ge=0, description="fakes that a discriminator may be shown again")
    learning_rate: float = Field(2e-4, gt=0, description="of Adam, until `decay_from`")
    betas: tuple[float, float] = Field((0.5, 0.999), description="of Adam")
    epochs: int = Field(400, ge=1, description="epochs of `iterations_per_epoch` updates each")
    decay_from: int = Field(200, ge=0, description="epochs before the learning rate falls linearly to 0")
    iterations_per_epoch: int = Field(498, ge=1, description="He: one patch of each of 498 CTs")
    save_every: int = Field(5, ge=1, description="epochs between checkpoints")
    overlap: float = Field(0.5, ge=0, lt=1, description="of neighboring windows in use, as a share of the patch")
    seed: Seed = Field(0, description="of weights, patches and pools")
    reference: str | None = Field(
        None,
        description="case that all others are aligned with, by translation of body masks: patches come from within its "
        "box, so that a CT of the chest does not face an MR of the abdomen. None: from whole volumes",
    )

    @model_validator(mode="after")
    def _divisible(self) -> "TranslatorSettings":
        if any(n % 4 or n < 8 for n in self.patch):
            raise ValueError(f"patch {self.patch}: multiples of 4, at least 8, as the generators halve it twice")
        least = 3 * 2**self.layers  # two more convolutions of size 4 follow
        if min(self.patch) < least:
            halved = f"the discriminators halve it {self.layers} times"
            raise ValueError(f"patch {self.patch}: at least {least} voxels, as {halved}; or take fewer layers")
        return self
