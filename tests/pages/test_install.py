"""docs/install.md: what it types besides installing."""

import pytest
from tests.pages.harness import play


@pytest.mark.slow
def test_install(tmp_path):
    network = "installs from an index, over the network"
    skip = {"-m venv": "beside the pip lines", "env/bin/activate": "beside the pip lines", "pip install": network}
    assert "training step" in play("docs/install.md", tmp_path, skip=skip).said["tutelage doctor"]
