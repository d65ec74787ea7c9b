"""The wrapper that gives the compiler the recorded profile (scripts/pgo/rustc.sh)."""

import os
import pathlib
import shutil
import subprocess
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PGO = ROOT / "scripts" / "pgo"
NAMES = (PGO / "seen.of").read_text().split()[0]
RELEASE = ["-C", "opt-level=3"]


def wrapped(*command, folder=PGO, **env):
    """What the wrapper runs instead of this command, word by word, and what it says about it."""
    command = [folder / "rustc.sh", "printf", r"%s\n", *command]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=True)
    return done.stdout.splitlines(), done.stderr


def library(metadata, name="nexusgate", emit="dep-info,metadata,link"):
    return ["--crate-name", name, "--crate-type", "lib", f"--emit={emit}", *RELEASE, "-C", f"metadata={metadata}"]


@pytest.mark.parametrize("command", [["-vV"], ["--crate-name", "nexusgate", "--crate-type", "lib"], ["-C", "opt-level=1"]])
def test_what_is_not_for_release_is_compiled_as_it_would_be(command):
    assert wrapped(*command) == (command, "")


def test_cargo_calls_it():
    settings = tomllib.loads((ROOT / ".cargo/config.toml").read_text())
    assert os.access(ROOT / settings["build"]["rustc-wrapper"], os.X_OK)
    assert (ROOT / settings["build"]["rustc-wrapper"]).samefile(PGO / "rustc.sh")


def test_a_release_build_gets_the_profile_and_nothing_is_said():
    command = library(NAMES)
    words, said = wrapped(*command)
    assert words[: len(command)] == command
    assert words[len(command) :] == ["-C", f"profile-use={PGO}/seen.profdata", "-C", "llvm-args=-no-pgo-warn-mismatch"]
    assert said == ""


def test_a_build_that_the_profile_does_not_fit_is_told_so_once():
    _, said = wrapped(*library("0123456789abcdef"))
    assert said.startswith("warning: ") and said.endswith("scripts/pgo/record.sh makes a new one\n")
    for command in (library("0123456789abcdef", name="tokio"), library("0123456789abcdef", emit="dep-info,metadata")):
        _, said = wrapped(*command)
        assert said == ""


def test_a_recording_build_counts_and_leaves_its_names(tmp_path):
    command = library("0123456789abcdef")
    words, said = wrapped(*command, NEXUSGATE_PGO_RECORD=str(tmp_path))
    assert words == [*command, "-C", f"profile-generate={tmp_path}/raw"]
    assert said == ""
    assert (tmp_path / "names").read_text() == "0123456789abcdef\n"


def test_the_compiler_accepts_the_profile_from_any_folder(tmp_path):
    folder = tmp_path / "a folder"
    shutil.copytree(PGO, folder)
    (tmp_path / "a.rs").write_text("fn main() {}")
    command = [folder / "rustc.sh", "rustc", *RELEASE, "-o", tmp_path / "a", tmp_path / "a.rs"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    subprocess.run([tmp_path / "a"], check=True)
