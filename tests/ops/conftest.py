import pytest

from tests.support.table import skip_if_too_deep


@pytest.fixture(autouse=True)
def _several_layers(request):
    """Every test of a ``case`` on an ``entry`` of the table, or on a ``backend`` by name."""
    parameters = getattr(request.node, "callspec", None)
    given = parameters.params if parameters else {}
    backend = given["entry"].backend if "entry" in given else given.get("backend")
    if "case" in given and backend is not None:
        skip_if_too_deep(backend, given["case"])
