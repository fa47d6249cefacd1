from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tidemill import ConfigurationError, DefinitionError, Service
from tidemill.cli.load import load

if TYPE_CHECKING:
    from .conftest import Project


def load_service(target: str) -> object:
    return load(target, "a Service", lambda thing: isinstance(thing, Service))


def refusal(target: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_service(target)
    return str(caught.value)


def test_a_service_is_found_in_the_working_directory(project: Project) -> None:
    service = load_service("shop:service")
    assert isinstance(service, Service)
    assert service.name == "mail"


def test_attributes_may_be_nested(project: Project) -> None:
    (project.directory / "nested.py").write_text("import shop\nclass app:\n    mail = shop.service\n")
    assert load_service("nested:app.mail") is load_service("shop:service")


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("shop", "'shop' does not name a Service. Write module:name, such as shop:name."),
        (":service", "such as shop:service"),
        ("shop:", "such as shop:name"),
        ("shop.py:service", "'shop.py' is a file, and what is needed is a module: shop:service"),
        ("src/shop:service", "src.shop:service"),
        ("nope:service", "there is no module 'nope'. Looked in "),
        ("nope.deeper:service", "there is no module 'nope'."),
        ("shop:servise", "has no 'servise'. Did you mean shop:service?"),
        ("shop:send", "shop:send is of type function, not a Service. Did you mean shop:service?"),
        ("shop:Service", "shop:Service is the class Service, not a Service."),
        ("contracts:payments", "contracts:payments is of type Topic, not a Service. That module has none."),
    ],
)
def test_what_cannot_be_loaded_is_explained(project: Project, target: str, text: str) -> None:
    assert text in refusal(target)


def test_an_import_error_inside_the_module_shows_only_its_own_frames(project: Project) -> None:
    (project.directory / "outer.py").write_text("import inner\n")
    (project.directory / "inner.py").write_text("import json\n\njson.loads('{')\n")
    text = refusal("outer:service")
    assert text.startswith("'outer' could not be imported:")
    assert f'File "{project.directory}/outer.py", line 1' in text
    assert f'File "{project.directory}/inner.py", line 3' in text
    assert text.count("File ") == 2, text
    assert "JSONDecodeError: Expecting property name" in text.splitlines()[-1]


def test_a_missing_import_of_the_module_is_not_taken_for_a_missing_module(project: Project) -> None:
    (project.directory / "outer.py").write_text("import nowhere_at_all\n")
    text = refusal("outer:service")
    assert "could not be imported" in text
    assert "No module named 'nowhere_at_all'" in text


def test_the_causes_of_an_import_error_are_cut_too(project: Project) -> None:
    (project.directory / "outer.py").write_text(
        "import json\ntry:\n    json.loads('{')\nexcept ValueError as error:\n    raise OSError('no') from error\n"
    )
    text = refusal("outer:service")
    assert "direct cause" in text
    assert "json/decoder.py" not in text


def test_a_syntax_error_points_at_its_line(project: Project) -> None:
    (project.directory / "broken.py").write_text("x = 1\ny = (\n")
    text = refusal("broken:service")
    assert "broken.py" in text
    assert "line 2" in text
    assert "SyntaxError" in text


def test_declaration_errors_speak_for_themselves(project: Project) -> None:
    (project.directory / "wrong.py").write_text("from tidemill import Topic\nTopic('not a name')\n")
    with pytest.raises(DefinitionError, match="not a name"):
        load_service("wrong:service")
