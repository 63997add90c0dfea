#!/usr/bin/env python3
"""Runs a mixed batch for a long time and looks at what must not change meanwhile.

Lines of all lengths come through stdin, several at once are generated with a quantized cache and a draft in
a process of its own, which is killed and started again. Exits with 1 unless every line is there once and ok,
resident memory and descriptors of `generate` stay flat, the draft was lost and came back as often as it was
killed, and a sample of the texts is, token for token, what single runs without a draft give. (That no page of
the cache leaks is counted by the program itself when it ends; it would die of it.) The drift of tokens/s from
the first to the last sixth of the time is shown, and held to --drift where that is given: on a machine on
which nothing else runs."""
import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import threading
import time

SETTLING = 0.2  # part of the time until memory must be flat: by then caches and scratch space were all used
GROWTH_BYTES = 8 << 20
DECK = 64  # lines after which lengths come again, so that any ten minutes have the same work
PAGE = os.sysconf('SC_PAGE_SIZE')
WORDS = 'the king and his daughter went into a dark wood where an old woman lived with seven ravens'.split()


def parse():
    tales = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'configs/tales/tales-')
    p = argparse.ArgumentParser(prog='soak.sh', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--tandem', default='build/default/tandem', metavar='PROGRAM')
    p.add_argument('--target', default=tales + 'target.q8_0.gguf')
    p.add_argument('--draft', default=tales + 'draft.q8_0.gguf')
    p.add_argument('--device', action='append', help='of the target, as of generate (default: host:1)')
    p.add_argument('--minutes', type=float, default=60)
    p.add_argument('--longest', type=int, default=8192, help='positions of a line (default: 8192; the shortest: 10)')
    p.add_argument('--parallel', type=int, default=8)
    p.add_argument('--kv', default='q8_0', help='type of the cache (default: q8_0)')
    p.add_argument('--lose', type=float, default=60, metavar='S', help='the draft is killed every S seconds (default: 60)')
    p.add_argument('--sample', type=int, default=20, help='lines that are generated again alone (default: 20)')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--drift', type=float, metavar='PERCENT', help='a greater change of tokens/s is an error')
    p.add_argument('--curve', metavar='FILE.csv', help='memory, descriptors and tokens/s over time')
    return p.parse_args()


class Drafts:
    """The draft's process: started, killed every so often, started again."""

    def __init__(self, args, folder):
        self.endpoint = 'ipc://%s/draft.sock' % folder
        self.command = [args.tandem, 'draft', '--model', args.draft, '--bind', self.endpoint, '--parallel', str(args.parallel)]
        self.log = os.path.join(folder, 'draft.log')
        self.n_kills = 0
        self.start()

    def start(self):
        with open(self.log, 'a') as f:
            self.process = subprocess.Popen(self.command, stderr=f)

    def lose(self):
        self.process.kill()
        self.process.wait()
        self.n_kills += 1
        time.sleep(0.5)
        self.start()

    def stop(self):
        self.process.kill()
        self.process.wait()


def make_deck(rng, longest):
    """(words of the prompt, tokens, temperature) of lines whose lengths lie evenly over their logarithm."""
    deck = []
    for i in range(DECK):
        n = int(10 * math.exp(math.log(longest / 10) * i / (DECK - 1)))
        n_prompt = max(1, int(n * rng.uniform(0.1, 0.9) / 2))  # a word is two tokens at most
        deck.append((n_prompt, max(1, n - 2 * n_prompt), rng.choice([0, 0.8])))
    rng.shuffle(deck)
    return deck


def make_line(rng, number, deck):
    n_prompt, n, temp = deck[number % len(deck)]
    return {'id': str(number), 'prompt': ' '.join(rng.choice(WORDS) for _ in range(n_prompt)), 'n': n, 'temp': temp, 'seed': number}


class Feed(threading.Thread):
    """Lines go in as others come out: twice as many as run at once are under way."""

    def __init__(self, args, process, end):
        super().__init__(daemon=True)
        self.args, self.process, self.end = args, process, end
        self.lines, self.results = [], []
        self.start()

    def run(self):
        rng = random.Random(self.args.seed)
        deck = make_deck(rng, self.args.longest)
        out = threading.Thread(target=self.read, daemon=True)
        out.start()
        try:
            while time.time() < self.end and self.process.poll() is None:
                if len(self.lines) - len(self.results) >= 2 * self.args.parallel:
                    time.sleep(0.01)
                    continue
                self.lines.append(make_line(rng, len(self.lines), deck))
                self.process.stdin.write(json.dumps(self.lines[-1]) + '\n')
                self.process.stdin.flush()
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # its exit status is looked at
        out.join()

    def read(self):
        for line in self.process.stdout:
            self.results.append(json.loads(line))


def look(pid):
    """Resident bytes and open descriptors; None when it is gone."""
    try:
        with open('/proc/%d/statm' % pid) as f:
            return int(f.read().split()[1]) * PAGE, len(os.listdir('/proc/%d/fd' % pid))
    except (OSError, IndexError):
        return None


def speed(results, begin, end):
    """Tokens/s between two times, a line's tokens lying evenly in the time from its first to its last."""
    n = 0
    for r in results:
        last, first = r['finished_s'], r['finished_s'] - (r['ms'] - r['ttft_ms']) / 1000
        inside = min(last, end) - max(first, begin)
        if inside > 0 and last > first:
            n += len(r['tokens']) * inside / (last - first)
        elif last == first and begin <= last < end:
            n += len(r['tokens'])
    return n / (end - begin)


def alone(args, folder, lines, cache):
    """The same lines one by one, without a draft: their tokens by id."""
    path = os.path.join(folder, 'again.jsonl')
    with open(path, 'w') as f:
        f.writelines(json.dumps(line) + '\n' for line in lines)
    r = subprocess.run([args.tandem, 'generate', '--target', args.target, '--in', path, '--quiet', *cache], stdout=subprocess.PIPE, text=True)
    return {x['id']: x['tokens'] for x in map(json.loads, r.stdout.splitlines())}


def judge(args, folder, feed, drafts, samples, stats, cache):
    """Everything that is wrong, in words."""
    wrong = []
    ids = [r['id'] for r in feed.results]
    if sorted(ids) != sorted(line['id'] for line in feed.lines):
        wrong.append('%d lines went in, %d came out, %d of them different' % (len(feed.lines), len(ids), len(set(ids))))
    wrong += ['line %s: %s' % (r['id'], r['error']) for r in feed.results if r['status'] != 'ok'][:5]
    settled = [s for s in samples if s[0] >= args.minutes * 60 * SETTLING]
    n = max(1, len(settled) // 4)
    if len(settled) < 8:
        wrong.append('it was over before memory could be looked at')
    else:
        for what, i, most in (('resident bytes', 1, GROWTH_BYTES), ('descriptors', 2, 0)):
            before, after = (max(s[i] for s in part) if i == 1 else min(s[i] for s in part) for part in (settled[:n], settled[-n:]))
            print('%s: %d after %d %% of the time, %d in the end' % (what, before, 100 * SETTLING, after))
            if after > before + most:
                wrong.append('%s grew from %d to %d' % (what, before, after))
    t = stats['totals']
    print('the draft was killed %d times; lost %d, back %d times' % (drafts.n_kills, t['draft_losses'], t['draft_joins']))
    if drafts.n_kills and not (1 <= t['draft_losses'] <= drafts.n_kills and t['draft_joins'] > 1):
        wrong.append('the draft was not lost and found again as it was killed')
    rng = random.Random(args.seed + 1)
    sample = rng.sample(feed.lines, min(args.sample, len(feed.lines)))
    got = {r['id']: r['tokens'] for r in feed.results if r['status'] == 'ok'}
    wanted = alone(args, folder, sample, cache)
    other = [line['id'] for line in sample if wanted.get(line['id']) is None or got.get(line['id']) != wanted[line['id']]]
    print('%d lines were generated again alone, %d other texts' % (len(sample), len(other)))
    if other:
        wrong.append('another text in lines %s' % ', '.join(other))
    return wrong


def main():
    args = parse()
    for path in (args.tandem, args.target, args.draft):
        if not os.path.exists(path):
            sys.exit('soak.sh: %s is not there' % path)
    with tempfile.TemporaryDirectory() as folder:
        stats_path = os.path.join(folder, 'stats.json')
        cache = ['--kv-k', args.kv, '--kv-v', args.kv, '--ctx', str(args.longest + 64), '--ignore-eos']
        for spec in args.device or ['host:1']:
            cache += ['--device', spec]
        drafts = Drafts(args, folder)
        begin = time.time()
        end = begin + args.minutes * 60
        p = subprocess.Popen([args.tandem, 'generate', '--target', args.target, '--in', '-', '--draft-endpoint', drafts.endpoint, '--parallel',
                              str(args.parallel), '--stats', stats_path, '--quiet', *cache], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             text=True)
        feed = Feed(args, p, end)
        samples, due = [], begin + args.lose
        every = min(5, args.minutes * 60 / 100)
        while time.time() < end and p.poll() is None:
            seen = look(p.pid)
            if seen:
                samples.append((time.time() - begin, *seen))
            if time.time() >= due:
                drafts.lose()
                due += args.lose
            time.sleep(every)
        feed.join()
        code = p.wait()
        drafts.stop()
        if code:
            sys.exit('soak.sh: generate ended with %d' % code)
        with open(stats_path) as f:
            stats = json.load(f)
        sixth = (end - begin) / 6
        first, last = speed(feed.results, begin, begin + sixth), speed(feed.results, end - sixth, end)
        drift = 100 * (last / first - 1) if first else math.nan
        t = stats['totals']
        print('%d lines, %d tokens in %.1f s, acceptance %.2f' % (t['ok'], t['tokens'], t['seconds'], t['acceptance'] or 0))
        print('tokens/s: %.1f in the first sixth of the time, %.1f in the last: %+.2f %%' % (first, last, drift))
        wrong = judge(args, folder, feed, drafts, samples, stats, cache)
        if args.drift is not None and not abs(drift) <= args.drift:
            wrong.append('tokens/s changed by %+.2f %%, of which %g %% are allowed' % (drift, args.drift))
        if args.curve:
            with open(args.curve, 'w') as f:
                f.write('seconds,resident_bytes,descriptors,tokens_per_second\n')
                for i, (at, resident, n_fds) in enumerate(samples):
                    to = samples[i + 1][0] if i + 1 < len(samples) else end - begin
                    f.write('%.1f,%d,%d,%.1f\n' % (at, resident, n_fds, speed(feed.results, begin + at, begin + to) if to > at else 0))
        for text in wrong:
            print('soak.sh: ' + text, file=sys.stderr)
        return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
