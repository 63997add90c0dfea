#!/usr/bin/env python3
"""What a job costs: the same short lines from a file and from databases, in turns, by wall and CPU time.

    scripts/bench_job.py --tandem build/tandem --model M.gguf --url sqlite:/tmp/bench.db \\
        --url 'postgresql://user@host/db' --workers 1,2,4

Databases must hold no job; what is made there is dropped. Several workers of a file are GNU parallel
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

WORDS = 'the of a king miller daughter wood fox river stone golden bird apple tree night morning horse road'.split()


def parse_args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--tandem', default='build/tandem')
    p.add_argument('--model', required=True)
    p.add_argument('--url', action='append', default=[], help='a database; several')
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
                for url in [None, *a.url]:
                    seconds, cpu = run(a, folder, url, n, settings, env)
                    rows.setdefault((n, url), []).append((a.lines * a.n / seconds, cpu))
                    print('%d: %d workers, %s: %.1f s, %.1f s of CPU, load %.1f' %
                          (turn, n, (url or 'file').split(':')[0], seconds, cpu, os.getloadavg()[0]), file=sys.stderr)
    print('| workers | from | tokens/s | of the file | CPU, s | of the file |\n| ---: | --- | ---: | ---: | ---: | ---: |')
    for (n, url), turns in rows.items():
        base = rows[n, None]
        speed, cpu = (statistics.median(t[k] / b[k] for t, b in zip(turns, base)) for k in (0, 1))
        print('| %d | %s | %.0f | %.3f | %.2f | %.3f |' %
              (n, (url or 'file').split(':')[0], statistics.median(t[0] for t in turns), speed,
               statistics.median(t[1] for t in turns), cpu))


if __name__ == '__main__':
    main()
