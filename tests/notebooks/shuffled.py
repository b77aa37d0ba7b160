"""A data set from which nothing can be learned, to show that an acceptance value notices."""

from torch import Tensor
from torch.utils.data import Dataset


class Shuffled(Dataset):
    """Each picture with another picture's labels."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.data[index][0], self.data[(index + 7) % len(self)][1]
