"""What pyproject.toml cannot say: mm-align does not claim the name `kernels`, though it installs the folder.

transformers asks whoever claims that name for its version, and would take this distribution for Hugging Face's package
once its version lies in their range.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.egg_info import egg_info


class Metadata(egg_info):
    """setuptools' metadata, `kernels` left out of the names in top_level.txt."""

    def run(self) -> None:
        super().run()
        claimed = Path(self.egg_info) / "top_level.txt"
        names = [name for name in claimed.read_text().split() if name != "kernels"]
        claimed.write_text("\n".join(names) + "\n")


setup(cmdclass={"egg_info": Metadata})
