"""The wrapper that gives the compiler the recorded profile (scripts/pgo/rustc.sh), and the check of it (record.sh)."""

import hashlib
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


def test_the_check_finds_the_same_in_every_language(tmp_path):
    """In most of them `sort` puts a before B; in order of bytes B is the first."""
    profile = "[profile.release]\nlto = true\n\n"
    (tmp_path / "Cargo.toml").write_text(f"[workspace]\n\n{profile}[profile.bench]\n")
    (tmp_path / "cargo").write_text("#!/bin/sh\nprintf '%s\\n' 'a v1.0.0 std' 'B v1.0.0 (/here) std' 'a v1.0.0 std'\n")
    by_case = '[ "$LC_ALL" = C ] || set -- -f "$@"'
    (tmp_path / "sort").write_text(f'#!/bin/sh\n{by_case}\nexec {shutil.which("sort")} "$@"\n')
    for program in ("cargo", "sort"):
        (tmp_path / program).chmod(0o755)
    pgo = tmp_path / "scripts" / "pgo"
    pgo.mkdir(parents=True)
    shutil.copy(PGO / "record.sh", pgo)
    env = {name: value for name, value in os.environ.items() if not name.startswith("LC_")}
    env |= {"LANG": "en_US.UTF-8", "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def check(dependencies):
        (pgo / "seen.of").write_text(f"names {hashlib.sha256((dependencies + profile).encode()).hexdigest()[:16]}\n")
        return subprocess.run([pgo / "record.sh", "--check"], env=env, capture_output=True, text=True)

    done = check("B v1.0.0 std\na v1.0.0 std\n")
    assert (done.returncode, done.stderr) == (0, "")
    other = check("B v1.0.0 std\na v1.0.1 std\n")
    assert other.returncode == 1 and "of other dependencies" in other.stderr
