#!/usr/bin/env python3
"""scripts/setup.sh on other distributions than this one, by samples of os-release and, for what it does
when it may not or cannot install, stand-ins for the programs it asks.

usage: e2e_setup.py   (standard library only; installs nothing)"""
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

SETUP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "scripts", "setup.sh")
# os-release -> the package manager, and what a package of each kind is named there.
SAMPLES = {
    'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_ID="12"\nID=debian\n': "debian",
    'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nVERSION_ID="13"\nID=debian\n': "debian",
    'NAME="Ubuntu"\nVERSION_ID="24.04"\nID=ubuntu\nID_LIKE=debian\n': "debian",
    'NAME="Linux Mint"\nID=linuxmint\nID_LIKE="ubuntu debian"\n': "debian",
    'NAME="Fedora Linux"\nVERSION_ID=43\nID=fedora\n': "fedora",
    'NAME="Nobara Linux"\nID=nobara\nID_LIKE="rhel centos fedora"\n': "fedora",
    'NAME="Arch Linux"\nID=arch\nBUILD_ID=rolling\n': "arch",
    "NAME='CachyOS Linux'\nID='cachyos'\nID_LIKE='arch'\n": "arch",
}
NAMES = {
    "debian": ("apt-get ", "libvulkan-dev", "libzmq3-dev", "libcmocka-dev"),
    "fedora": ("dnf install ", "vulkan-loader-devel", "zeromq-devel", "libcmocka-devel"),
    "arch": ("pacman -S ", "vulkan-icd-loader", "zeromq", "cmocka"),
}


class Setup(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)

    def run_setup(self, *arguments, os_release="", path=None):
        sample = os.path.join(self.folder, "os-release")
        with open(sample, "w", encoding="utf-8") as file:
            file.write(os_release)
        environment = {k: v for k, v in os.environ.items() if k != "TD_SKIP_SETUP"}
        environment["TD_OS_RELEASE"] = sample
        if path:
            environment["PATH"] = path
        return subprocess.run([shutil.which("bash"), SETUP, *arguments], env=environment,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)

    def stand_ins(self, **programs):
        """A path with the few tools that setup.sh needs, and shell texts in place of programs."""
        folder = os.path.join(self.folder, "bin")
        os.mkdir(folder)
        for name in ("sed", "head", "sort", "dirname", "env", "mktemp", "tail", "rm", "cat"):
            os.symlink(shutil.which(name), os.path.join(folder, name))
        for name, text in programs.items():
            program = os.path.join(folder, name.replace("_", "-"))
            with open(program, "w", encoding="utf-8") as file:
                file.write(f"#!{shutil.which('bash')}\n{text}\n")
            os.chmod(program, 0o755)
        return folder

    def test_each_family_gets_its_own_commands(self):
        for sample, family in SAMPLES.items():
            manager, loader, queue, cmocka = NAMES[family]
            with self.subTest(sample=sample):
                plain = self.run_setup("--print", os_release=sample)
                tests = self.run_setup("--print", "--tests", os_release=sample)
                self.assertEqual((plain.returncode, tests.returncode), (0, 0), plain.stderr)
                self.assertIn(manager, plain.stdout)
                words = plain.stdout.split()
                self.assertIn(loader, words)
                self.assertIn(queue, words)
                self.assertNotIn(cmocka, words)
                self.assertIn(cmocka, tests.stdout.split())
                others = {n for f, names in NAMES.items() if f != family for n in names[1:]}
                self.assertFalse(others & set(words))

    def test_an_unknown_system_is_told_what_to_install(self):
        for sample in ("ID=alpine\n", 'ID="$(touch hacked)"\n', "", "ID_LIKE=\n"):
            result = self.run_setup(os_release=sample)
            self.assertEqual(result.returncode, 1, sample)
            self.assertIn("libzmq3-dev", result.stderr)
            self.assertIn("TD_SKIP_SETUP=1", result.stderr)
        self.assertFalse(os.path.exists("hacked"))

    def test_without_root_the_command_is_said(self):
        path = self.stand_ins(id="echo 1000", dpkg_query="exit 1", apt_get="exit 9")
        result = self.run_setup(os_release="ID=debian\n", path=path)
        self.assertEqual(result.returncode, 1)
        self.assertIn("as root: ", result.stderr)
        self.assertIn("libjansson-dev", result.stderr)

    def test_only_what_is_missing_is_installed_by_sudo_or_pkexec(self):
        for program in ("sudo", "pkexec"):
            log = os.path.join(self.folder, "log")
            path = self.stand_ins(id="echo 1000", cmake="echo cmake version 3.28.1",
                                  rpm="[ ${!#} != zeromq-devel ]", **{program: f'echo "$@" >>{log}'})
            result = self.run_setup(os_release="ID=fedora\n", path=path)
            self.assertEqual(result.returncode, 0, result.stderr)
            with open(log, encoding="utf-8") as file:
                self.assertEqual(file.read().split(), "dnf install -y --setopt=install_weak_deps=False "
                                 "zeromq-devel".split())
            os.remove(log)
            shutil.rmtree(path)

    def test_nothing_missing_calls_nobody(self):
        path = self.stand_ins(cmake="echo cmake version 3.31.0", pacman='[ "$1" = -T ]')
        result = self.run_setup("--tests", os_release="ID=arch\n", path=path)
        self.assertEqual((result.returncode, result.stdout, result.stderr), (0, "", ""))

    def test_an_old_cmake_is_named(self):
        path = self.stand_ins(cmake="echo cmake version 3.22.1", dpkg_query="echo installed")
        result = self.run_setup(os_release='ID=ubuntu\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n', path=path)
        self.assertEqual(result.returncode, 1)
        self.assertIn("the CMake of Ubuntu 22.04.5 LTS is 3.22.1; needed: 3.25", result.stderr)

    def test_a_failed_installation_shows_its_end(self):
        path = self.stand_ins(id="echo 0", pacman='[ "$1" = -T ] && echo "$2"; echo no such target; exit 1')
        result = self.run_setup(os_release="ID=arch\n", path=path)
        self.assertEqual(result.returncode, 1)
        self.assertIn("no such target", result.stderr)
        self.assertIn("By hand: pacman -S", result.stderr)

    def test_an_option_that_does_not_exist(self):
        result = self.run_setup("--test", os_release="ID=debian\n")
        self.assertEqual(result.returncode, 1)
        self.assertIn("allowed: --tests, --print", result.stderr)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v"])
