"""Reader of docker/compose.yaml with its variables, and of the bash blocks of docs/team.md."""

import re
from pathlib import Path
from typing import Any

import yaml

CHECKOUT = Path(__file__).parents[1]
DOCKER = CHECKOUT / "docker"
PAGE = CHECKOUT / "docs" / "team.md"
VARIABLE = re.compile(r"\$(?:(\$)|\{(\w+)(?::([-?])([^}]*))?\})")


def read_services(variables: dict[str, str], file: Path = DOCKER / "compose.yaml") -> dict[str, dict[str, Any]]:
    """Return the services of a compose file, with the values of variables."""
    return fill(yaml.safe_load(file.read_text(encoding="utf-8")), variables)["services"]


def fill(node: Any, variables: dict[str, str]) -> Any:
    """Replace ${NAME}, ${NAME:-default} and ${NAME:?message} as `docker compose` does."""
    if isinstance(node, dict):
        return {key: fill(value, variables) for key, value in node.items()}
    if isinstance(node, list):
        return [fill(value, variables) for value in node]
    return VARIABLE.sub(lambda match: _value(match, variables), node) if isinstance(node, str) else node


def _value(match: re.Match[str], variables: dict[str, str]) -> str:
    dollar, name, sign, text = match.groups()
    if dollar:
        return "$"
    if variables.get(name):
        return variables[name]
    if sign == "-":
        return text
    raise KeyError(f"{name} is not set: {text}")


def read_variables(file: Path) -> dict[str, str]:
    """Return the variables of a file such as `.env`."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def blocks(heading: str = "") -> list[str]:
    """Return the bash blocks of docs/team.md below a heading, or all of them."""
    text = PAGE.read_text(encoding="utf-8")
    if heading:
        (text,) = re.findall(rf"^##+ {heading}\n(.*?)(?=^##|\Z)", text, re.S | re.M)
    return re.findall(r"^```bash\n(.*?)^```", text, re.S | re.M)
