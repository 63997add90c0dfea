#!/usr/bin/env python3
"""What a job costs: the same short lines from a file and from databases, in turns, by wall and CPU time.

    scripts/bench_job.py --tandem build/tandem --model M.gguf --url sqlite:/tmp/bench.db \\
        --url 'postgresql://user@host/db' --workers 1,2,4

Databases must hold no job; what is made there is dropped. --server runs the same lines through llama.cpp's
server as well, on as many threads, with a client that keeps its slots full; its loading is not counted (a
worker's is). Several workers of a file are GNU parallel
over as many parts of it. A row's tokens/s are all tokens over the time from the first worker's start to
the last one's end, its CPU that of the workers (of SQLite the database's too, of PostgreSQL not), and
"of the file" the median over the turns of a turn's tokens/s against the file's with as many workers.
Standard library only."""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

WORDS = 'the of a king miller daughter wood fox river stone golden bird apple tree night morning horse road'.split()


def parse_args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--tandem', default='build/tandem')
    p.add_argument('--model', required=True)
    p.add_argument('--url', action='append', default=[], help='a database; several')
    p.add_argument('--server', help="llama.cpp's llama-server, beside")
    p.add_argument('--port', type=int, default=8391, help='for the server, on loopback')
    p.add_argument('--lines', type=int, default=10000)
    p.add_argument('-n', type=int, default=16, help='tokens of each line')
    p.add_argument('--workers', default='1', help='how many at once, one core each: 1,2,4')
    p.add_argument('--parallel', type=int, default=8, help='sequences of a worker at once')
    p.add_argument('--turns', type=int, default=3)
    return p.parse_args()


def write_lines(path, n):
    with open(path, 'w') as f:
        for i in range(n):
            words = [WORDS[(i // len(WORDS) ** k) % len(WORDS)] for k in range(4)]
            f.write(json.dumps({'id': 'l%d' % i, 'prompt': ' '.join(words)}) + '\n')


def go(command, env):
    """Seconds that passed, and of CPU, its children's too."""
    start, before = time.monotonic(), os.times()
    r = subprocess.run(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if r.returncode != 0:
        sys.exit('%s: exit code %d\n%s' % (command[:3], r.returncode, r.stderr[-2000:]))
    after = os.times()
    return (time.monotonic() - start,
            after.children_user + after.children_system - before.children_user - before.children_system)


def post(a, line):
    """One line's completion: its number of tokens."""
    asked = {'prompt': json.loads(line)['prompt'], 'n_predict': a.n, 'temperature': 0, 'ignore_eos': True,
             'cache_prompt': False}
    request = urllib.request.Request('http://127.0.0.1:%d/completion' % a.port, json.dumps(asked).encode(),
                                     {'Content-Type': 'application/json'})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)['tokens_predicted']


def wait_until_served(a, server):
    for _ in range(600):
        try:
            with urllib.request.urlopen('http://127.0.0.1:%d/health' % a.port, timeout=1):
                return
        except (urllib.error.URLError, OSError):
            if server.poll() is not None:
                sys.exit('%s: exit code %d' % (a.server, server.returncode))
            time.sleep(0.1)
    sys.exit('%s: not ready after a minute' % a.server)


def run_server(a, folder, n_threads):
    """Seconds for the lines, and of CPU by the server, its loading too."""
    server = subprocess.Popen([a.server, '-m', a.model, '-t', str(n_threads), '-np', str(a.parallel), '-c',
                               str(a.parallel * 512), '--host', '127.0.0.1', '--port', str(a.port)],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    before = os.times()
    try:
        wait_until_served(a, server)
        start = time.monotonic()
        with open(folder + '/in.jsonl') as f, ThreadPoolExecutor(a.parallel) as pool:
            n_tokens = list(pool.map(lambda line: post(a, line), f))
        seconds = time.monotonic() - start
    finally:
        server.terminate()
        server.wait()
    if n_tokens != [a.n] * a.lines:
        sys.exit('%s: %d lines of %d have %d tokens' % (a.server, n_tokens.count(a.n), a.lines, a.n))
    after = os.times()
    return (seconds, after.children_user + after.children_system - before.children_user - before.children_system)


def run(a, folder, url, n_workers, settings, env):
    worker = [a.tandem, 'generate', '--target', a.model, '--device', 'host:1', '--no-measure', '--quiet', '--parallel',
              str(a.parallel)]
    lines = folder + '/in.jsonl'
    if url:
        subprocess.run([a.tandem, 'job', 'create', url, '--in', lines, *settings], env=env, check=True, capture_output=True)
        worker += ['--job', url]
        command = worker if n_workers == 1 else ['parallel', '-N0', '-j%d' % n_workers, *worker, ':::',
                                                 *map(str, range(n_workers))]
    else:
        parts = ['%s/part%d' % (folder, i) for i in range(n_workers)]
        with open(lines) as f:
            all_lines = f.readlines()
        for i, part in enumerate(parts):
            with open(part, 'w') as f:
                f.writelines(all_lines[i::n_workers])
            if os.path.exists(part + '.out'):
                os.unlink(part + '.out')
        worker += settings
        command = [*worker, '--in', parts[0], '--out', parts[0] + '.out'] if n_workers == 1 else [
            'parallel', '-j%d' % n_workers, *worker, '--in', '{}', '--out', '{}.out', ':::', *parts]
    times = go(command, env)
    if url:
        status = json.loads(subprocess.run([a.tandem, 'job', 'status', url, '--json'], env=env, check=True,
                                           capture_output=True).stdout)
        n_ok = status['ok']
        subprocess.run([a.tandem, 'job', 'drop', url], env=env, check=True, capture_output=True)
    else:
        n_ok = sum(line.count('"status":"ok"') for part in parts for line in open(part + '.out'))
    if n_ok != a.lines:
        sys.exit('%s: %d of %d lines are ok' % (url or 'file', n_ok, a.lines))
    return times


def name_of(url):
    return os.path.basename(url.split(':')[0]) if url else 'file'


def main():
    a = parse_args()
    counts = [int(n) for n in a.workers.split(',')]
    if max(counts) > 1 and not shutil.which('parallel'):
        sys.exit('several workers need GNU parallel (Debian: parallel)')
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, 'TANDEM_CACHE_DIR': folder + '/cache'}
        write_lines(folder + '/in.jsonl', a.lines)
        settings = ['-n', str(a.n), '--temp', '0', '--ignore-eos']
        for turn in range(a.turns):
            for n in counts:
                for url in [None, *a.url, *([a.server] if a.server else [])]:
                    is_server = a.server and url == a.server
                    seconds, cpu = run_server(a, folder, n) if is_server else run(a, folder, url, n, settings, env)
                    rows.setdefault((n, url), []).append((a.lines * a.n / seconds, cpu))
                    print('%d: %d workers, %s: %.1f s, %.1f s of CPU, load %.1f' %
                          (turn, n, name_of(url), seconds, cpu, os.getloadavg()[0]), file=sys.stderr)
    print('| workers | from | tokens/s | of the file | CPU, s | of the file |\n| ---: | --- | ---: | ---: | ---: | ---: |')
    for (n, url), turns in rows.items():
        base = rows[n, None]
        speed, cpu = (statistics.median(t[k] / b[k] for t, b in zip(turns, base)) for k in (0, 1))
        print('| %d | %s | %.0f | %.3f | %.2f | %.3f |' %
              (n, name_of(url), statistics.median(t[0] for t in turns), speed,
               statistics.median(t[1] for t in turns), cpu))


if __name__ == '__main__':
    main()
