#!/usr/bin/env python3
"""Weights for workers that have not the model: only what their layers need is sent, once, in pieces
that are kept and checked, within bounds; and the text is that of one machine.

usage: e2e_weights.py TANDEM   (run from the source root; standard library only)"""
import os
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
import unittest

import e2e_stage
from e2e_stage import DRAFT, TANDEM, TARGET, free_port

LAYERS = ['--device', 'host:1@0-4', '--device', 'a/host:1@5-9']


def read_head(path):
    """Bytes before the tensors' data, and of each tensor by name; how GGUF files are laid out:
    github.com/ggml-org/ggml/blob/master/docs/gguf.md"""
    with open(path, 'rb') as f:
        data = f.read()
    at = 24
    n_tensors, n_keys = struct.unpack_from('<QQ', data, 8)

    def text():
        nonlocal at
        n, = struct.unpack_from('<Q', data, at)
        at += 8 + n
        return data[at - n:at].decode()

    def skip(kind):
        nonlocal at
        if kind == 8:
            text()
        elif kind == 9:
            of, n = struct.unpack_from('<IQ', data, at)
            at += 12
            for _ in range(n):
                skip(of)
        else:
            at += (1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8)[kind]

    keys_at = at
    for _ in range(n_keys):
        text()
        at += 4
        skip(struct.unpack_from('<I', data, at - 4)[0])
    keys_end, infos = at, []
    for _ in range(n_tensors):
        begin, name = at, text()
        at += 4 + 8 * struct.unpack_from('<I', data, at)[0] + 4
        infos.append((name, data[begin:at], struct.unpack_from('<Q', data, at)[0]))
        at += 8
    start = at + -at % 32
    ends = sorted(offset for _, _, offset in infos) + [len(data) - start]
    sizes = {name: ends[ends.index(offset) + 1] - offset for name, _, offset in infos}
    tensors = {name: (info, data[start + offset:start + offset + sizes[name]]) for name, info, offset in infos}
    return at, data[keys_at:keys_end], n_keys, tensors


def write_shards(path, folder):
    """The model in two files."""
    _, keys, n_keys, tensors = read_head(path)
    names, paths = list(tensors), []
    for i in range(2):
        part = names[:len(names) // 2] if i == 0 else names[len(names) // 2:]
        own = b''.join(struct.pack('<Q', len(k)) + k.encode() + struct.pack('<Ii', 5, v) for k, v in (
            ('split.no', i), ('split.count', 2), ('split.tensors.count', len(names))))
        infos, data = b'', b''
        for name in part:
            info, values = tensors[name]
            infos += info + struct.pack('<Q', len(data))
            data += values + bytes(-len(values) % 32)
        head = b'GGUF' + struct.pack('<IQQ', 3, len(part), 3 + (n_keys if i == 0 else 0))
        head += (keys if i == 0 else b'') + own + infos
        paths.append(os.path.join(folder, 'two-%05d-of-00002.gguf' % (i + 1)))
        with open(paths[-1], 'wb') as f:
            f.write(head + bytes(-len(head) % 32) + data)
    return paths[0]


class Relay(threading.Thread):
    """TCP from `port` to another, at most so many bytes a second to the worker, and counted."""

    def __init__(self, to, bytes_per_s):
        super().__init__(daemon=True)
        self.to, self.bytes_per_s, self.n_bytes = to, bytes_per_s, 0
        self.listener = socket.create_server(('127.0.0.1', 0))
        self.port = self.listener.getsockname()[1]
        self.start()

    def run(self):
        while True:
            try:
                near = self.listener.accept()[0]
                far = socket.create_connection(('127.0.0.1', self.to))
            except OSError:
                continue
            for a, b, is_counted in ((near, far, True), (far, near, False)):
                threading.Thread(target=self.copy, args=(a, b, is_counted), daemon=True).start()

    def copy(self, a, b, is_counted):
        try:
            while data := a.recv(65536):
                b.sendall(data)
                if is_counted:
                    self.n_bytes += len(data)
                    time.sleep(len(data) / self.bytes_per_s)
        except OSError:
            pass
        for s in (a, b):
            s.close()


class Weights(e2e_stage.Case):
    texts = e2e_stage.PROMPTS[1:2]

    def setUp(self):
        super().setUp()
        self.cache = os.path.join(self.dir.name, 'cache')
        self.env = {**os.environ, 'TANDEM_CACHE_DIR': self.cache}

    def begin(self, end, *args):
        return self.start(end, '--device', 'host:1', *args, env=self.env)

    def stop(self, worker):
        """What it logged."""
        worker.terminate()
        return worker.communicate(timeout=20)[1]

    def sent(self, worker):
        """Bytes needed and sent, as often as weights were looked for; and all that it logged."""
        text = self.stop(worker)
        return [tuple(map(int, m)) for m in re.findall(r'(\d+) bytes of .* are needed, (\d+) were sent', text)], text

    def test_what_layers_need_is_sent_once(self):
        a = self.ipc('a')
        wanted = self.generate('--device', 'host:1', '--device', 'host:1', n=12)
        worker = self.begin(a)
        for _ in range(2):
            self.assertEqual(self.generate('--host', 'a=' + a, *LAYERS, n=12), wanted)
        counts, text = self.sent(worker)
        head, _, _, tensors = read_head(TARGET)
        sizes = {name: len(data) for name, (_, data) in tensors.items()}
        layers = sum(n for name, n in sizes.items() if re.match(r'blk\.[5-9]\.', name))
        ends = sum(n for name, n in sizes.items() if not name.startswith('blk.'))
        self.assertEqual([needed == sent for needed, sent in counts], [True], text)
        self.assertTrue(head + layers < counts[0][0] <= head + layers + ends, (head, layers, ends, counts))
        self.assertLess(sum(os.stat(os.path.join(folder, name)).st_blocks * 512 for folder, _, names in
                            os.walk(self.cache) for name in names), counts[0][0] + 300000)
        # A worker that is new to it finds it, and all of the layers come where others are asked for.
        worker = self.begin(a)
        self.assertEqual(self.generate('--host', 'a=' + a, *LAYERS, n=12), wanted)
        self.assertEqual(self.generate('--host', 'a=' + a, '--device', 'a/host:1', n=12),
                         self.generate('--device', 'host:1', n=12))
        again, text = self.sent(worker)
        self.assertEqual(again[0], (counts[0][0], 0), text)
        self.assertEqual(again[1][1], again[1][0] - counts[0][0], text)

    def test_two_workers_with_one_cache(self):
        ends = [self.ipc('a'), self.ipc('b')]
        workers = [self.begin(end) for end in ends]
        args = ['--host', 'a=' + ends[0], '--host', 'b=' + ends[1], '--device', 'a/host:1', '--device', 'b/host:1']
        wanted = self.generate('--device', 'host:1', '--device', 'host:1', n=12)
        self.assertEqual(self.generate(*args, n=12), wanted)
        counts = [self.sent(worker)[0][0] for worker in workers]
        self.assertLess(sum(n for _, n in counts), os.path.getsize(TARGET) + 1, counts)

    def test_a_model_in_two_files(self):
        a, path = self.ipc('a'), write_shards(TARGET, self.dir.name)
        worker = self.begin(a)
        self.assertEqual(self.generate('--host', 'a=' + a, *LAYERS, '--target', path, n=12),
                         self.generate('--device', 'host:1', '--device', 'host:1', n=12))
        counts, text = self.sent(worker)
        self.assertEqual(len(counts), 1, text)
        self.assertLess(counts[0][1], os.path.getsize(TARGET) * 0.7)

    def test_a_fetch_that_was_killed_goes_on(self):
        port = free_port()
        end, size = 'tcp://127.0.0.1:%d' % port, os.path.getsize(TARGET)
        worker = self.begin(end)
        relay = Relay(port, size / 3)
        args = ['--host', 'a=tcp://127.0.0.1:%d' % relay.port, '--device', 'a/host:1']
        p = subprocess.Popen(self.command(*args, n=4), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while relay.n_bytes < size * 0.6 and p.poll() is None:
            time.sleep(0.01)
        worker.kill()
        worker.wait()
        p.communicate(timeout=60)
        self.assertNotEqual(p.returncode, 0)
        record, = [os.path.join(folder, 'record') for folder, _, names in os.walk(self.cache) if 'record' in names]
        with open(record, 'ab') as f:
            f.write(b'torn')
        relay.bytes_per_s = 1e9
        worker = self.begin(end)
        self.assertEqual(self.generate(*args, n=4), self.generate('--device', 'host:1', n=4))
        counts, text = self.sent(worker)
        self.assertEqual(len(counts), 1, text)
        self.assertLess(counts[0][1], size * 0.9, text)
        self.assertLess(relay.n_bytes, size * 1.5)

    def test_a_signal_ends_a_fetch(self):
        port = free_port()
        worker = self.begin('tcp://127.0.0.1:%d' % port)
        relay = Relay(port, os.path.getsize(TARGET) / 100)
        p = subprocess.Popen(self.command('--host', 'a=tcp://127.0.0.1:%d' % relay.port, '--device', 'a/host:1'),
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while relay.n_bytes < 100000 and p.poll() is None:
            time.sleep(0.01)
        p.terminate()
        _, text = p.communicate(timeout=20)
        self.assertEqual(p.returncode, 143, text)
        self.stop(worker)

    def test_damage_is_noticed(self):
        a = self.ipc('a')
        wanted = self.generate('--device', 'host:1', '--device', 'host:1', n=12)
        self.stop_after(a, wanted)
        path, = [os.path.join(folder, name) for folder, _, names in os.walk(self.cache) for name in names
                 if name.endswith('.gguf')]
        size = os.path.getsize(path)
        for at in (size - 100, 100):  # a layer's or the end's, and the head's
            with open(path, 'r+b') as f:
                f.seek(at)
                byte = f.read(1)[0]
                f.seek(at)
                f.write(bytes([byte ^ 1]))
            counts, text = self.stop_after(a, wanted)
            self.assertIn('damaged', text)
            self.assertTrue(0 < counts[0][1] < counts[0][0], text)
        os.truncate(path, size - 200000)
        counts, text = self.stop_after(a, wanted)
        self.assertTrue(0 < counts[0][1] < counts[0][0], text)

    def stop_after(self, end, wanted):
        worker = self.begin(end)
        self.assertEqual(self.generate('--host', 'a=' + end, *LAYERS, n=12), wanted)
        return self.sent(worker)

    def test_the_cache_is_bounded(self):
        a = self.ipc('a')
        args = ['--host', 'a=' + a, '--device', 'a/host:1']
        worker = self.begin(a, '--cache-size', '0.002')
        self.assertIn('allowed: 0.002 GB (--cache-size)', self.generate(*args, code=69))
        self.stop(worker)
        shutil.rmtree(self.cache)
        # As large as one of the two: the one that was used before goes.
        worker = self.begin(a, '--cache-size', '0.01')
        self.generate(*args, '--target', DRAFT, n=4)
        self.generate(*args, n=4)
        files = [name for folder, _, names in os.walk(self.cache) for name in names if name.endswith('.gguf')]
        self.assertEqual(len(files), 1)
        self.generate(*args, '--target', DRAFT, n=4)
        counts, text = self.sent(worker)
        self.assertTrue(all(needed == sent for needed, sent in counts), text)
        worker = self.begin(a, '--cache-size', '0', '--model', DRAFT)
        self.assertIn('none is sent', self.generate(*args, code=69))

    def test_own_files_come_first(self):
        a, path = self.ipc('a'), os.path.join(self.dir.name, 'other-name.gguf')
        shutil.copy(TARGET, path)
        worker = self.begin(a, '--models', self.dir.name)
        self.generate('--host', 'a=' + a, *LAYERS, n=4)
        self.assertEqual(self.sent(worker)[0], [])


if __name__ == '__main__':
    unittest.main()
