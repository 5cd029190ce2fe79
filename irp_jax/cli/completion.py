"""bin/completion: prints a script that completes commands, flags and their values in a shell.

The script is made from the typed options of the commands. The flag parser can also print one, but
it does not complete the value in --flag=value, and knows one command at a time.
"""

import dataclasses
import sys
from collections.abc import Iterable
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from irp_jax import config as configs
from irp_jax.attacks.spec import ATTACKS
from irp_jax.cli import (
    COMMANDS,
    as_typed,
    bench,
    common,
    describe,
    evaluate,
    export,
    latency,
    publish,
    report,
    sweep,
)
from irp_jax.data import DATASETS
from irp_jax.errors import UserError, unknown
from irp_jax.models import MODELS

SHELLS = ("bash", "zsh")

USAGE = """usage: bin/completion bash|zsh

Print a script that completes commands, flags and their values. To use it in this shell, and in each
new one if the line is in ~/.bashrc or ~/.zshrc (there after compinit):

    source <(irp-jax completion bash)

In a checkout: source <(bin/completion bash). It completes bin/train and the others, too."""

VALUES: dict[str, Iterable[str]] = {
    "--model": MODELS, "--dataset": DATASETS, "--attack": ATTACKS, "--config": configs.available(),
}  # fmt: skip
"""Flag -> names that it takes, if its type does not tell them. A file is completed, too."""

Flags = dict[str, tuple[str, ...] | None]
"""Flag -> the values that it takes; no values: a file or free text; None: it takes no value."""


def completion(arguments: list[str]) -> None:
    """Prints the script for the shell that the first argument names."""
    if {"-h", "--help"} & set(arguments):
        print(as_typed(USAGE))
        return
    if len(arguments) != 1:
        raise UserError("name one shell: bin/completion bash, or bin/completion zsh")
    sys.stdout.write(script(arguments[0]))


def flags() -> dict[str, Flags]:
    """Returns command -> its flags. "export verify" and "bench train" are commands, too."""
    several = _of(evaluate.Options) | dict.fromkeys(common.HOSTS, ())
    train = _of(configs.Config) | dict.fromkeys(common.HOSTS, ())
    train |= {"--config": tuple(VALUES["--config"]), "--dry-run": None, "--list": None}
    return {
        "train": train, "evaluate": several, "sweep": _of(sweep.Options),
        "report": _of(report.Options), "describe": _of(describe.Options),
        "publish": _of(publish.Options), "export": _of(export.Options),
        "export verify": _of(export.VerifyOptions), "latency": _of(latency.Options),
        "bench": {"--help": None}, "bench train": _of(bench.Options),
        "completion": {"--help": None},
    }  # fmt: skip


def _of(options: Any) -> Flags:
    """Returns the flags of a dataclass."""
    found: Flags = {"--help": None}
    for field in dataclasses.fields(options):
        flag = "--" + field.name.replace("_", "-")
        if field.type is bool:
            found |= {flag: None, "--no-" + flag[2:]: None}
        else:
            given = VALUES.get(flag, field.metadata.get("options", _literals(field.type)))
            found[flag] = tuple(map(str, given))
    return found


def _literals(kind: Any) -> tuple[str, ...]:
    """Returns the values of a Literal, or of one within a union."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else ()
    return tuple(value for part in parts for value in _literals(part))


def script(shell: str) -> str:
    """Returns the script for a shell.

    Args:
        shell: "bash" or "zsh".

    Raises:
        UserError: another shell.
    """
    if shell not in SHELLS:
        raise unknown("shell", shell, SHELLS)
    every = flags()
    words = {"irp-jax": (*COMMANDS, "--help", "--version"), "completion": SHELLS}
    for name in every:
        first, _, second = name.partition(" ")
        if second:
            words[first] = (second,)
    for name, its in every.items():
        given = (flag if values is None else f"{flag}=" for flag, values in its.items())
        words[name] = (*words.get(name, ()), *given)
    chosen: dict[tuple[str, ...], list[str]] = {}
    for name, its in every.items():
        for flag, values in its.items():
            if values:
                chosen.setdefault(values, []).append(f"'{name} {flag}'")
    scripts = (f"{folder}bin/{name}" for name in COMMANDS for folder in ("", "./"))
    filled = {
        "PAIRS": "|".join(f"'{name}'" for name in every if " " in name),
        "WORDS": _cases((f"'{name}'", its) for name, its in words.items()),
        "VALUES": _cases(("|".join(names), values) for values, names in chosen.items()),
        "PROGRAMS": " ".join(("irp-jax", *scripts)),
    }
    text = FUNCTION + ENDS[shell]
    for key, value in filled.items():
        text = text.replace(f"@{key}@", value)
    return text


def _cases(cases: Iterable[tuple[str, Iterable[str]]]) -> str:
    return "\n".join(f"    {names}) offered='{' '.join(words)}' ;;" for names, words in cases)


FUNCTION = r"""# Completes the commands of irp_jax. Written by `irp-jax completion`.
_irp_jax() {
  local line="${COMP_LINE:0:$COMP_POINT}" array=a words last word before command second
  local flag='' offered='' one
  [[ -n ${ZSH_VERSION-} ]] && array=A
  read -r -$array words <<< "$line"
  [[ $line == *[[:blank:]] ]] && words+=('')
  last=$(( ${#words[@]} - 1 ))
  word="${words[@]:$last:1}" before="${words[@]:$last-1:1}"
  command="${words[@]:0:1}" && command="${command##*/}" && second="${words[@]:1:1}"
  if [[ $command == irp-jax && $last -gt 1 ]]; then
    command="$second" second="${words[@]:2:1}" && last=$(( last - 1 ))
  fi
  case "$command $second" in @PAIRS@) (( last > 1 )) && command="$command $second" ;; esac
  if [[ $word == --*=* ]]; then
    flag="${word%%=*}" word="${word#*=}"
  elif [[ $word != -* && $before == --* && $before != *=* ]]; then
    flag="$before"
  fi
  if [[ -n $flag ]]; then
    case "$command $flag" in
@VALUES@
    esac
  elif [[ -n $word || $command != report ]]; then  # report takes files first
    case "$command" in
@WORDS@
    esac
  fi
  COMPREPLY=()
  for one in $offered; do [[ $one == "$word"* ]] && COMPREPLY+=("$one"); done
}
"""
"""Sets COMPREPLY to what completes the last word of COMP_LINE, after a "=" in it. It is empty where
only a file can follow. bash and zsh read the same text; their arrays start at different numbers, so
words are taken as slices, which do not."""

ENDS = {
    "bash": r"""_irp_jax_bash() {
  _irp_jax
  if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[*]} == *= ]]; then compopt -o nospace 2> /dev/null; fi
}
complete -o default -o bashdefault -F _irp_jax_bash @PROGRAMS@
""",
    "zsh": r"""_irp_jax_zsh() {
  local COMP_LINE="${(j: :)words[1,CURRENT-1]} $PREFIX"
  local COMP_POINT=${#COMP_LINE} COMPREPLY
  emulate ksh -c _irp_jax
  compset -P '--*='
  if (( $#COMPREPLY )); then
    compadd -S '' -- "${(M@)COMPREPLY:#*=}"
    compadd -- "${(@)COMPREPLY:#*=}"
  else
    _files
  fi
}
compdef _irp_jax_zsh @PROGRAMS@
""",
}
"""Shell -> what calls the function there."""


if __name__ == "__main__":
    common.main(completion)
