"""All that runs log has a panel in W&B."""

import pytest

from ddpm_lightning.report.workspace import workspace
from tests.helpers.workspace import keys_of, names_logged, panels_of

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec", "ignore:The number of training batches")


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    return names_logged(tmp_path_factory.mktemp("logged"))


def test_all_that_is_logged_is_shown(logged):
    shown = {key for panel in panels_of(workspace("me", "p")) for key in keys_of(panel)}
    assert {key for key in logged if key.partition("/")[0] != "mse_at_log_snr"} <= shown
