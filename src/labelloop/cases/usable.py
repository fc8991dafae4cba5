"""A case as the steps after the survey take it: what the case table says, and what the survey found."""

from dataclasses import dataclass
from pathlib import Path

from labelloop.base.classes import ClassScheme
from labelloop.base.files import digest
from labelloop.cases.survey import read_truth
from labelloop.cases.table import Case
from labelloop.images.scan import read_surveyed
from labelloop.images.volume import Volume, read, upright_volume


@dataclass(frozen=True)
class UsableCase:
    """A usable case: its row of the case table and what the survey found."""

    case: Case
    states: dict[str, str]
    image_sha256: str
    label_sha256: str
    label_ids: str
    upside_down: bool = False

    @property
    def id(self) -> str:
        """Case id."""
        return self.case.case

    @property
    def truth_key(self) -> str:
        """Fingerprint of the annotators' label as the classes see it."""
        return digest([self.label_sha256, self.label_ids, self.states, *self.turned])

    @property
    def image_key(self) -> str:
        """Fingerprint of the image as it is read."""
        return digest([self.image_sha256, *self.turned]) if self.turned else self.image_sha256

    @property
    def examination_key(self) -> str:
        """Fingerprint of what rules of anatomy go by beside the labels: the image, its modality, and surgery."""
        return digest([self.image_key, self.case.modality, self.case.surgery])

    @property
    def turned(self) -> list[str]:
        """What a fingerprint says of a case that is stored upside down; nothing of others."""
        return ["upside down"] if self.upside_down else []

    def image(self) -> Volume:
        """Read the image, of several channels the first; turn it upright if it is stored upside down."""
        return self.upright(read_surveyed(self.case.images[0]))

    def all_channels(self) -> Volume:
        """Read the image with all its channels; turn it upright if it is stored upside down."""
        return self.upright(read_surveyed(*self.case.images))

    def label(self, path: str | Path) -> Volume:
        """Read a label map that is stored as the image is."""
        return self.upright(read(path))

    def truth(self, scheme: ClassScheme) -> Volume | None:
        """Read the annotators' label map in class ids; None without one."""
        found = read_truth(self.case, scheme)
        return None if found is None else self.upright(found)

    def as_stored(self, volume: Volume) -> Volume:
        """Give a volume that :meth:`image` or :meth:`label` turned upright the header of the stored files again."""
        return self.upright(volume)  # what turns it once turns it back

    def upright(self, volume: Volume) -> Volume:
        """Give a volume with the header of the stored files a true one, if it is stored upside down."""
        return upright_volume(volume) if self.upside_down else volume
