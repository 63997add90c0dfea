#!/usr/bin/env python3
"""The Debian packages that cpack makes: what is in them, and that a bare Debian needs nothing else to
install and run them.

usage: e2e_package.py TANDEM   (run from the source root; standard library only)
TD_BARE_DEBIAN=FOLDER: a bare Debian for that, made there by debootstrap if it is not (minutes, 200 MB, as
root, from a mirror); it is left as it was."""
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

TANDEM = os.path.abspath(sys.argv.pop(1))
BUILD = os.path.dirname(TANDEM)
BARE = os.environ.get('TD_BARE_DEBIAN')
MIRROR = 'http://deb.debian.org/debian'
# In the Debian, with the packages in /packages: its programs alone.
INSIDE = r'''
set -e
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends /packages/*.deb >/dev/null 2>/packages/apt.log || { cat /packages/apt.log; exit 1; }
pair=/usr/share/tandem/configs/tales
tandem --version
tandem devices --json >/packages/devices.json
tandem generate --quiet --in $pair/prompts.jsonl --out /packages/plain.jsonl -n 20 --temp 0 --device host:1 \
    --no-measure --target $pair/tales-target.q8_0.gguf
tandem job create sqlite:/packages/job.db --in $pair/prompts.jsonl -n 20 --temp 0
tandem generate --quiet --job sqlite:/packages/job.db --device host:1 --no-measure --draft-fixed 3 \
    --target $pair/tales-target.q8_0.gguf --draft $pair/tales-draft.q8_0.gguf --draft-device host:1
tandem job export sqlite:/packages/job.db --out /packages/job.jsonl
apt-get purge -y -qq tandem tandem-doc >/dev/null
test ! -e /usr/bin/tandem && test ! -e /usr/share/tandem && test ! -e /usr/share/doc/tandem
'''


def texts(path):
    with open(path) as f:
        return {line['id']: (line['status'], line['text']) for line in map(json.loads, f)}


class Package(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if not shutil.which('cpack') or not shutil.which('dpkg-shlibdeps'):
            raise unittest.SkipTest('there is no cpack or dpkg-shlibdeps here (Debian: cmake, dpkg-dev)')
        cls.folder = tempfile.mkdtemp()
        made = subprocess.run(['cpack', '-G', 'DEB', '--config', BUILD + '/CPackConfig.cmake', '-B', cls.folder],
                              capture_output=True, text=True)
        assert made.returncode == 0, made.stdout + made.stderr
        shutil.rmtree(cls.folder + '/_CPack_Packages')
        cls.packages = sorted(glob.glob(cls.folder + '/*.deb'))

    @classmethod
    def tearDownClass(cls):
        if hasattr(cls, 'folder'):
            shutil.rmtree(cls.folder)

    def test_what_is_in_them(self):
        names = [os.path.basename(p).split('_')[0] for p in self.packages]
        self.assertEqual(sorted(names), ['tandem', 'tandem-doc'])
        main, doc = (next(p for p in self.packages if os.path.basename(p).startswith(start)) for start in
                     ('tandem_', 'tandem-doc_'))
        depends = subprocess.run(['dpkg-deb', '-f', main, 'Depends'], capture_output=True, text=True, check=True).stdout
        for library in ('libc6', 'libzmq5', 'libjansson4', 'libsqlite3-0', 'libvulkan1'):
            self.assertIn(library, depends)
        for package, files in ((main, ['bin/tandem', 'share/man/man1/tandem.1', 'share/man/man1/tandem-job.1',
                                       'share/bash-completion/completions/tandem', 'share/zsh/vendor-completions/_tandem',
                                       'share/fish/vendor_completions.d/tandem.fish', 'share/doc/tandem/copyright',
                                       'share/tandem/configs/tales.json', 'share/tandem/configs/systemd/tandem-worker@.service',
                                       'share/tandem/configs/tales/tales-target.q8_0.gguf']),
                               (doc, ['share/doc/tandem/README.md', 'share/doc/tandem/docs/jobs.md'])):
            into = self.folder + '/' + os.path.basename(package) + '.d'
            subprocess.run(['dpkg-deb', '-x', package, into], check=True)
            for name in files:
                self.assertTrue(os.path.getsize(into + '/usr/' + name) > 0, name)

    @unittest.skipUnless(BARE, 'TD_BARE_DEBIAN=FOLDER has it tried in a bare Debian (made there, minutes, 200 MB)')
    def test_a_bare_debian_runs_them(self):
        if os.geteuid() != 0:
            self.skipTest('only root may make a Debian and mount in it')
        if not os.path.exists(BARE + '/usr/bin/apt-get'):
            if not shutil.which('debootstrap'):
                self.skipTest('there is no debootstrap here (Debian: debootstrap)')
            part = BARE + '.part' # one that was not finished is begun anew
            shutil.rmtree(part, ignore_errors=True)
            made = subprocess.run(['debootstrap', '--variant=minbase', 'bookworm', part, MIRROR], capture_output=True,
                                  text=True)
            if made.returncode != 0:
                self.skipTest('debootstrap: ' + (made.stdout + made.stderr)[-200:])
            os.rename(part, BARE)
        # What is installed lies over it, in memory, and goes with the process.
        inside = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, inside)
        with open(inside + '/inside.sh', 'w') as f:
            f.write(INSIDE)
        script = ('set -e; m=$1/m; mkdir $m $1/t; mount -t tmpfs none $1/t; mkdir $1/t/u $1/t/w; '
                  'mount -t overlay -o "lowerdir=$2,upperdir=$1/t/u,workdir=$1/t/w" none $m; mkdir $m/packages; '
                  'mount --bind "$3" $m/packages; mount -t proc none $m/proc; mount --rbind /dev $m/dev; '
                  'cp /etc/resolv.conf $m/etc/; cp $1/inside.sh $m/; exec chroot $m bash /inside.sh')
        r = subprocess.run(['unshare', '--mount', '--pid', '--fork', 'bash', '-c', script, '-', inside, BARE, self.folder],
                           capture_output=True, text=True, timeout=900)
        self.assertEqual(r.returncode, 0, r.stdout + r.stderr)
        self.assertIn('tandem ', r.stdout)
        with open(self.folder + '/devices.json') as f:
            self.assertTrue(json.load(f))
        plain = texts(self.folder + '/plain.jsonl')
        self.assertEqual({status for status, _ in plain.values()}, {'ok'})
        self.assertEqual(texts(self.folder + '/job.jsonl'), plain)


if __name__ == '__main__':
    unittest.main(verbosity=2)
