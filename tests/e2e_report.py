#!/usr/bin/env python3
"""`tandem report`: pages of what the bundled pair really wrote, whose figures are those of the files;
files that are broken or mean harm; with gnuplot, without, and with one that lies; in a browser where
one is installed.

usage: e2e_report.py TANDEM   (run from the source root; standard library only)"""
import csv
import glob
import html.parser
import json
import os
import random
import re
import shutil
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
import unittest
import zlib

TANDEM = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else 'build/tandem'
TARGET = 'configs/tales/tales-target.q8_0.gguf'
DRAFT = 'configs/tales/tales-draft.q8_0.gguf'
GNUPLOT = shutil.which('gnuplot')
EVIL = '<script>alert("x")</script>\'"&\u202e`$(id)\\{}\nplot sin(x)\n!id'


def run(*arguments, code=0, env=None, text=True):
    r = subprocess.run([TANDEM, *map(str, arguments)], capture_output=True, text=text, timeout=300,
                       env={**os.environ, **(env or {})})
    assert r.returncode == code, (arguments, r.returncode, r.stdout[-2000:], r.stderr[-2000:])
    return r


class Page(html.parser.HTMLParser):
    """Tables by caption (lists of rows of texts), figures by caption: (pictures, rows), and all tags."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.figures, self.tags, self.links, self.text = {}, {}, [], [], ''
        self.rows = self.figure = self.into = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for key, value in attributes:
            assert not key.startswith('on'), key
            if key in ('src', 'href', 'xlink:href', 'action', 'data', 'srcset', 'poster'):
                self.links.append(value)
        if tag == 'table':
            self.rows, self.caption = [], ''
        elif tag == 'tr':
            self.rows.append([])
        elif tag in ('td', 'th'):
            self.rows[-1].append('')
            self.into = 'cell'
        elif tag in ('caption', 'figcaption'):
            self.caption, self.into = '', 'caption'
        elif tag == 'figure':
            self.figure = [0, []]
        elif tag == 'svg':
            self.figure[0] += 1

    def handle_data(self, data):
        self.text += data
        if self.into == 'cell':
            self.rows[-1][-1] += data
        elif self.into == 'caption':
            self.caption += data

    def handle_endtag(self, tag):
        if tag in ('td', 'th', 'caption', 'figcaption'):
            self.into = None
        if tag == 'figcaption':
            self.figures[self.caption] = self.figure
        elif tag == 'figure':
            self.figure = None
        elif tag == 'table' and self.figure:
            self.figure[1] += self.rows[1:] # without the heads
        elif tag == 'table':
            self.tables.setdefault(self.caption, []).extend(self.rows)


def dictionary(rows):
    return {row[0]: row[1] for row in rows}


class Report(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.mkdtemp()
        os.environ['TANDEM_CACHE_DIR'] = cls.dir + '/cache'
        lines = [{'id': 'l%d' % i, 'prompt': 'Once upon a time there were %d' % i, 'n': 10 + 7 * i} for i in range(6)]
        lines[2]['id'] = EVIL.split('\n')[0]
        lines.append({'id': 'bad', 'prompt': 1})
        cls.input = cls.path('in.jsonl', '\n'.join(map(json.dumps, lines)))
        run('generate', '--target', TARGET, '--draft', DRAFT, '--device', 'host:1', '--device', 'host:1',
            '--draft-device', 'host:1', '--no-measure', '--draft-fixed', 4, '--parallel', 2, '--temp', 0, '--in', cls.input,
            '--out', cls.path('out.jsonl'), '--stats', cls.path('stats.json'), '--trace', cls.path('trace.json'), code=1)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.dir, ignore_errors=True)

    @classmethod
    def path(cls, name, text=None):
        path = os.path.join(cls.dir, name)
        if text is not None:
            with open(path, 'wb' if isinstance(text, bytes) else 'w') as f:
                f.write(text)
        return path

    @classmethod
    def read(cls, name):
        with open(cls.path(name)) as f:
            return f.read()

    def report(self, *inputs, env=None):
        out = self.path('page.html')
        run('report', *inputs, '--out', out, env=env)
        text = self.read('page.html')
        page = Page(text)
        self.assertEqual(page.tags.count('html'), 1)
        for tag in ('script', 'iframe', 'object', 'embed', 'img', 'link', 'base', 'form'):
            self.assertNotIn(tag, page.tags)
        for link in page.links:
            self.assertTrue(link.startswith('#'), link) # nothing is loaded
        self.assertFalse(re.findall(r'(?i)<script|javascript:|@import|url\(|https?:(?!//www\.w3\.org/(?:2000/svg|1999/xlink)")',
                                    text))
        self.assertIn("default-src 'none'", text)
        return page

    def check_figure(self, page, title, rows):
        """rows: [[x, y]] or [[x, label, y]]; one picture of it."""
        pictures, found = page.figures[title]
        self.assertEqual(pictures, 1 if GNUPLOT else 0, title)
        self.assertEqual(len(found), len(rows), (title, found, rows))
        for a, b in zip(sorted(found), sorted([list(map(str, row)) for row in rows])):
            self.assertEqual(a[1:-1], b[1:-1], title)
            for i in (0, -1):
                self.assertAlmostEqual(float(a[i]), float(b[i]), delta=1e-5 * abs(float(b[i])), msg=title)

    def check_table(self, page, caption, figures):
        table = dictionary(page.tables[caption])
        for key, value in figures.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self.assertAlmostEqual(float(table[key]), value, delta=1e-5 * abs(value), msg=key)
            elif isinstance(value, str):
                self.assertEqual(table[key], value)

    def test_stats(self):
        page, stats = self.report(self.path('stats.json')), json.loads(self.read('stats.json'))
        for caption, key in (('Run', None), ('Totals', 'totals'), ('Coordinator', 'coordinator'), ('Draft', 'draft')):
            self.check_table(page, caption, stats[key] if key else stats)
        self.assertEqual(len(stats['acceptance_by_position']), 4)
        self.check_figure(page, 'Acceptance by position in the draft',
                          [[i, a['rate']] for i, a in enumerate(stats['acceptance_by_position'])])
        self.check_figure(page, 'Idle share by device',
                          [[i + 1, 'stage %d host:1' % i, s['idle']] for i, s in enumerate(stats['stages'])] +
                          [[3, 'draft host:1', stats['draft']['idle']]])
        stages = page.tables['Stages']
        self.assertEqual([row[stages[0].index('verify_rows')] for row in stages[1:]],
                         [str(s['verify_rows']) for s in stats['stages']])

    def test_trace(self):
        page, events = self.report(self.path('trace.json')), json.loads(self.read('trace.json'))
        names = {e['tid']: e['args']['name'] for e in events if e['name'] == 'thread_name'}
        busy, verified, length, n_tokens = {}, {}, {}, 0
        for e in events:
            a = e['args']
            if e['ph'] == 'X':
                busy[e['tid']] = busy.get(e['tid'], 0) + e['dur'] / 1e6
            if e['name'] == 'verify':
                verified.setdefault((a['rows'], names[e['tid']]), []).append(e['dur'] / 1e3)
                for part in a['sequences'].split():
                    length.setdefault(part.split('@')[0], int(part.split('@')[1].split('+')[0]))
            elif e['name'] == 'commit' and str(a['sequence']) in length:
                more = a['length'] - length[str(a['sequence'])]
                length[str(a['sequence'])] += max(more, 0)
                n_tokens += max(more, 0)
        self.assertGreater(n_tokens, 50)
        self.check_table(page, 'Trace', {'events': len(events), 'tokens committed': n_tokens, 'lines that ended': 6})
        tracks = {row[0]: row for row in page.tables['Tracks'][1:]}
        self.assertEqual(len(tracks), 3)
        for tid, s in busy.items():
            self.assertAlmostEqual(float(tracks[names[tid]][3]), s, delta=1e-4 * s)
        self.check_figure(page, 'Idle share by device',
                          [[i + 1, name, share] for i, (name, share) in enumerate(events[-1]['args'].items())])
        self.check_figure(page, 'Time of a verification, mean',
                          [[n, name, sum(ms) / len(ms)] for (n, name), ms in verified.items()])
        self.check_integral(page, 'Throughput over time', n_tokens)
        self.assertEqual(page.figures['Busy share over time'][0], 1 if GNUPLOT else 0)

    def check_integral(self, page, title, total):
        """Rates in steps of time come to what was counted."""
        rows = [list(map(float, row)) for row in page.figures[title][1]]
        self.assertEqual(page.figures[title][0], 1 if GNUPLOT else 0, title)
        width = 2 * rows[0][0]
        last = 2 * (rows[-1][0] - width * (len(rows) - 1)) # the last step is up to twice as long
        self.assertAlmostEqual(sum(y for _, y in rows[:-1]) * width + rows[-1][1] * last, total, delta=1e-3 * total)

    def test_results(self):
        page = self.report(self.path('out.jsonl'))
        lines = [json.loads(line) for line in self.read('out.jsonl').splitlines()]
        good = [line for line in lines if line['status'] == 'ok']
        self.check_table(page, 'Lines', {'ok': 6, 'errors': 1, 'tokens': sum(len(line['tokens']) for line in good),
                                         **{k: sum(line[k] for line in good) for k in ('drafted', 'accepted')},
                                         'verifications': sum(line['rounds'] for line in good)})
        self.check_figure(page, 'Speed of the lines, in their order',
                          [[i + 1, len(line['tokens']) / line['ms'] * 1e3] for i, line in enumerate(lines) if line in good])
        self.check_figure(page, 'Acceptance of the lines, in their order',
                          [[i + 1, line['accepted'] / line['drafted']] for i, line in enumerate(lines) if line in good])
        self.assertEqual([row[0] for row in page.tables['The first lines'][1:]], [line['id'] for line in good])
        self.check_integral(page, 'Throughput over time, by when lines ended', sum(len(line['tokens']) for line in good))
        self.assertTrue(all(-60 < time.time() - line['finished_s'] < 86400 for line in lines))
        for line in lines: # as a tandem before had them
            del line['finished_s']
        page = self.report(self.path('old.jsonl', ''.join(json.dumps(line) + '\n' for line in lines)))
        self.assertNotIn('Throughput over time, by when lines ended', page.figures)
        self.assertIn('Speed of the lines, in their order', page.figures)
        self.assertIn(EVIL.split('\n')[0].replace('\u202e', ''), page.text.replace('\u202e', '')) # as text

    def test_job(self):
        url, path = 'sqlite:' + self.path('job.db'), self.path('job.db')
        run('job', 'create', url, '--in', self.input, '--temp', 0)
        workers = [subprocess.Popen([TANDEM, 'generate', '--job', url, '--target', TARGET, '--device', 'host:1',
                                     '--no-measure', '--parallel', '1', '--quiet'], stderr=subprocess.DEVNULL)
                   for _ in range(2)]
        for w in workers:
            self.assertIn(w.wait(timeout=300), (0, 1))
        status = json.loads(run('job', 'status', url, '--json', code=1).stdout)
        for named in (url, path):
            page = self.report(named)
            self.check_table(page, 'Job', {k: status[k] for k in ('ok', 'failed', 'waiting', 'tokens')})
            self.assertEqual([row[:2] for row in page.tables['Workers'][1:]],
                             [[w['name'], str(w['ok'])] for w in status['workers']])
            self.check_integral(page, 'Throughput over time, by when lines ended', status['tokens'])
            rows = page.figures['Lines that have ended, by worker'][1]
            done = {}
            for row in rows:
                done[row[1] if len(row) > 2 else status['workers'][0]['name']] = float(row[-1])
            self.assertEqual(sum(done.values()), status['ok'] + status['failed'])
        db = sqlite3.connect(path)
        with db:
            db.execute('UPDATE tandem_worker SET name = ?', (EVIL,)) if len(status['workers']) == 1 else \
                db.execute('UPDATE tandem_worker SET name = ? WHERE name = ?', (EVIL, status['workers'][0]['name']))
            db.execute('UPDATE tandem_line SET worker = ?', (EVIL,))
        db.close()
        self.assertIn(EVIL.split('\n')[0], self.report(url).text)
        db = sqlite3.connect(path)
        with db:
            db.execute('UPDATE tandem_line SET finished = finished + n * 86400')
        db.close()
        self.assertIn('days', self.report(url).text) # and not 10^5 seconds

    def test_bench(self):
        bench = ['bench', '--model', TARGET, '--device', 'host:1', '--pp', 8, '--tg', 4, '--repeat', 1, '--widths', '1,2,4']
        one = run(*bench, '--json').stdout
        c = [[int(n), v['c']] for n, v in json.loads(one)['verify'].items()]
        self.check_figure(self.report(self.path('one.json', one)), 'Cost of a verification, c(n)', c)
        for form in ('csv', 'json', 'jsonl'):
            text = run(*bench, '--format', form, '--depth', '0,32').stdout
            rows = list(csv.DictReader(text.splitlines())) if form == 'csv' else \
                json.loads(text) if form == 'json' else list(map(json.loads, text.splitlines()))
            page = self.report(self.path('bench.' + form, text))
            self.check_figure(page, 'Cost of a verification, c(n)',
                              [[int(r['n_rows']), 'n_depth=%s' % r['n_depth'], float(r['c'])] for r in rows if r['c']])
            self.assertEqual(len(page.tables['Records']), 1 + len(rows))

    def test_bench_of_a_pair(self):
        bench = ['bench', '--model', TARGET, '--draft', DRAFT, '--device', 'host:1', '--draft-device', 'host:1', '--repeat', 1]
        text = run(*bench, '--draft-max', '1,2', '-n', 8, '--format', 'jsonl').stdout
        rows = [r for r in map(json.loads, text.splitlines()) if 'chosen' not in r['test']]
        page = self.report(self.path('pair.jsonl', text))
        self.check_figure(page, 'Speed by draft length', [[r['k'], r['median_ts']] for r in rows])
        self.check_figure(page, 'Acceptance by draft length', [[r['k'], r['acceptance']] for r in rows if r['k']])
        rows = [dict(rows[0], prompt=p, test=t, median_ts=10 * i + k) # as bench --prompts has them
                for i, p in enumerate(('code', EVIL, 'story')) for k, t in enumerate(('plain', 'draft'))]
        page = self.report(self.path('prompts.json', json.dumps(rows)))
        self.assertEqual([row[1:] for row in page.figures['Speed by prompt'][1]],
                         [[t, str(10 * i + k)] for k, t in enumerate(('plain', 'draft')) for i in range(3)])

    def test_sweep(self):
        out = self.path('sweep.csv')
        subprocess.run(['scripts/sweep.sh', 'generate', '--out', out, '--repeat', '2', 'target.model=' + TARGET,
                        'target.devices:=[["host:1"]]', 'run.in=' + self.input, 'run.parallel=1,2,4', 'run.n=8', '--',
                        '--no-measure'], env={**os.environ, 'TANDEM': TANDEM}, capture_output=True, timeout=600)
        for name in ('sweep.csv', 'sweep.json'): # every run has a failed line and is an error to the sweep
            self.assertIn('Records', self.report(self.path(name)).tables)
        with open(self.input) as f:
            good = [line for line in f if '"bad"' not in line]
        self.path('good.jsonl', ''.join(good))
        subprocess.run(['scripts/sweep.sh', 'generate', '--out', out, '--repeat', '2', 'target.model=' + TARGET,
                        'target.devices:=[["host:1"]]', 'run.in=' + self.path('good.jsonl'), 'run.parallel=1,2,4', '--',
                        '--no-measure'], env={**os.environ, 'TANDEM': TANDEM}, capture_output=True, timeout=600, check=True)
        by = {}
        with open(out) as f:
            for row in csv.DictReader(f):
                by.setdefault(row['run.parallel'], []).append((float(row['ttft_ms_mean']), float(row['tokens_per_second'])))
        points = sorted([sum(x for x, _ in v) / 2, sum(y for _, y in v) / 2, k] for k, v in by.items())
        front = [p for i, p in enumerate(points) if all(p[1] > q[1] for q in points[:i])]
        for name in ('sweep.csv', 'sweep.json'):
            page = self.report(self.path(name))
            self.check_figure(page, 'Pareto front: throughput against waiting',
                              [[x, 'settings', y] for x, y, _ in points] + [[x, 'front', y] for x, y, _ in front])
            self.assertEqual([row[0] for row in page.tables['Settings of the front'][1:]], [k for _, _, k in front])

    def test_several_files(self):
        page = self.report(self.path('stats.json'), self.path('out.jsonl'), self.path('trace.json'))
        self.assertEqual(page.links[:3], ['#part1', '#part2', '#part3'])
        self.assertEqual(page.tags.count('section'), 3)
        r = run('report', '--out', '-', self.path('stats.json'))
        self.assertIn('Acceptance by position', r.stdout)

    def test_broken_files(self):
        """What, where, which value, what is allowed; and no page."""
        stats, trace = self.read('stats.json'), self.read('trace.json')
        line = self.read('out.jsonl').splitlines()[0]
        deep = '[' * 100000
        cases = [('', 'is empty'), ('hello\n', 'allowed: a job'), ('{"a": 1}', 'allowed: a job'),
                 (b'\0\1\2\3' * 100, 'allowed: a job'), (os.urandom(4096).replace(b'{', b'x'), 'allowed: a job'),
                 (stats[:-40], 'not valid JSON'), (stats.replace('"rate": 0.', '"rate": 7.'), '0.0..1.0'),
                 (stats.replace('"totals": {', '"totals": 3, "x": {'), 'totals is 3'),
                 (stats.replace('"losses": []', '"losses": %s' % deep), 'deep'),
                 (trace.replace('"ts":0', '"ts":-5', 1), 'ts is -5'), (trace.replace('"tid":2', '"tid":"2"', 1), 'tid is "2"'),
                 (trace.replace('\n', '\nnonsense,\n', 1), ':2: '),
                 (line + '\n{"id": "x"}\n' + line + '\n', ':2: the key "status" is missing'),
                 (line + '\n{"id": "\0"}\n' + line + '\n', ':2: '), (line.replace('"drafted":', '"drafted":-1'), 'drafted is -'),
                 ('{"id":"a","status":"ok","text":%s' % deep, 'deep'),
                 ('{"id":"a","status":"ok","text":"%s"}\n' % ('x' * (17 << 20)), 'bytes'),
                 ('repeat,status\n1,2,3\n', ':2: '), ('repeat,status,status\n', '"status"'), ('repeat,status\n1\n', ':2: '),
                 ('repeat,status\n1,"ok\n', 'no end'), ('repeat,status\n1,"ok"x\n', '"x"'), ('repeat,status\n1,\0\n', 'is 0'),
                 ('repeat,status,' + ','.join('c%d' % i for i in range(300)), 'columns'),
                 ('repeat,status\n' + '0,ok\n' * 10001, 'records'),
                 ('[{"repeat": 0, "status": "ok"}, 3]', 'tests[1] is 3'), ('[{"repeat": 0, "status": "ok"', 'not valid JSON'),
                 ('{"model_filename": "m", "test": "x", "tests": 4}\n', 'tests is 4'),
                 (b'SQLite format 3\0' + b'x' * 5000, 'database')]
        out = self.path('none.html')
        for i, (text, needle) in enumerate(cases):
            path = self.path('broken%d' % i, text)
            r = run('report', path, '--out', out, code=65)
            self.assertIn(needle, r.stderr, (i, r.stderr))
            self.assertIn(path, r.stderr)
            self.assertFalse(os.path.exists(out))
        for named, code in (('/dev/zero', 65), (self.dir, 65), (self.path('nowhere'), 74), ('sqlite:' + self.path('no.db'), None),
                            ('postgresql://u:secret@h/d', 2)):
            r = subprocess.run([TANDEM, 'report', named, '--out', out], capture_output=True, text=True, timeout=60)
            self.assertIn(r.returncode, (code,) if code else (65, 69, 74), r.stderr)
            self.assertNotIn('secret', r.stderr)
        for arguments in ([], [self.path('stats.json')], ['--out', out], [self.path('stats.json'), '--out', self.path('stats.json')],
                          [self.path('stats.json')] * 65 + ['--out', out], [self.path('stats.json'), '--output', out]):
            run('report', *arguments, code=2)
        r = run('report', self.path('stats.json'), '--out', self.path('no/folder.html'), code=74)
        self.assertIn('no/folder.html', r.stderr)
        self.assertFalse(glob.glob(self.path('*.html.*')))

    def test_changed_bytes(self):
        """Whatever a file's bytes become, there is a page or an error."""
        rng, env = random.Random(1), {'PATH': ''}
        sheet = 'a,repeat,status,ttft_ms_mean,tokens_per_second\n' + ''.join('"x%d",0,ok,%d,%d\n' % (i, i, i * i) for i in range(9))
        for text in (self.read('stats.json'), self.read('trace.json')[:20000], self.read('out.jsonl'), sheet):
            for _ in range(25):
                changed = bytearray(text.encode())
                for _ in range(rng.randrange(1, 4)):
                    at = rng.randrange(len(changed))
                    changed[at:at + rng.choice((0, 1, 1, 9))] = rng.choice((b'', b'"', b'\0', b'[', b'9', b'-', b',', b'\xff', b'1e999'))
                path = self.path('changed', bytes(changed))
                r = subprocess.run([TANDEM, 'report', path, '--out', self.path('changed.html')], capture_output=True,
                                   timeout=60, env={**os.environ, **env})
                self.assertIn(r.returncode, (0, 65), (r.stderr, bytes(changed)))
                self.assertTrue(r.returncode == 0 or b'changed' in r.stderr, r.stderr)

    def test_many_lines(self):
        line = json.loads(self.read('out.jsonl').splitlines()[0])
        n = 20000
        with open(self.path('many.jsonl'), 'w') as f:
            for i in range(n):
                f.write(json.dumps(dict(line, id=str(i), tokens=[1] * (i % 3), text='<i>')) + '\n')
        page = self.report(self.path('many.jsonl'))
        self.check_table(page, 'Lines', {'ok': n, 'errors': 0, 'tokens': sum(i % 3 for i in range(n))})
        self.assertLessEqual(len(page.figures['Speed of the lines, in their order'][1]), 64)
        self.assertLess(os.path.getsize(self.path('page.html')), 100000)

    def test_cut_off(self):
        """What a killed run leaves is read up to its last whole line."""
        for name, n in (('out.jsonl', 6), ('trace.json', None)):
            text = self.read(name)
            page = self.report(self.path('cut', text[:-30]))
            self.assertIn('cut off', page.text)
            if n:
                table = dictionary(page.tables['Lines'])
                self.assertEqual(int(table['ok']) + int(table['errors']), n)

    def test_words_that_mean_harm(self):
        """They are shown as text, and never reach gnuplot but as a plain label."""
        stats, line = json.loads(self.read('stats.json')), json.loads(self.read('out.jsonl').splitlines()[0])
        stats['model'] = stats['stages'][0]['device'] = stats['config']['out'] = EVIL
        stats['totals'][EVIL] = 1e308
        line.update(id=EVIL, text=EVIL + '\x01\x9b' + 'long ' * 1000, reason=EVIL)
        rows = [['repeat', 'status', EVIL, 'ttft_ms_mean', 'tokens_per_second', 'n_rows', 'c'],
                [0, 'ok', EVIL, 1e308, -1e308, 1, 1], [1, EVIL, 'x', 'nan', 'inf', 2, 1e308], [2, 'ok', '', 1, 2, 3, 4]]
        sheet = '\n'.join(','.join('"%s"' % str(c).replace('"', '""') for c in row) for row in rows)
        fake = self.path('bin/gnuplot')
        os.makedirs(os.path.dirname(fake), exist_ok=True)
        with open(fake, 'w') as f:
            f.write('#!/bin/sh\n/bin/cat >> %s\necho "<?xml?><svg></svg>"\n' % self.path('scripts'))
        os.chmod(fake, 0o755)
        inputs = [self.path('evil.json', json.dumps(stats)), self.path('evil.jsonl', json.dumps(line) + '\n'),
                  self.path('evil.csv', sheet)]
        for env in (None, {'PATH': os.path.dirname(fake)}):
            page = self.report(*inputs, env=env)
            self.assertGreater(page.text.count('<script>alert("x")</script>\'"&'), 5)
            self.assertNotIn('\x01', page.text)
            self.assertNotIn('long ' * 100, page.text)
        self.assertGreater(self.read('scripts').count('plot $s0'), 4)
        for word in ('alert', '`', '\\', '{', 'id)', '\nplot sin', '\n!'):
            for row in self.read('scripts').splitlines():
                if word.strip() in row and not row.startswith(('set', 'plot $s0')):
                    self.fail(row)
        labels = re.findall(r"title '([^']*)'", self.read('scripts'))
        self.assertTrue(any('script' in label for label in labels), labels)
        for label in labels:
            self.assertRegex(label, r'^[\w .:+\-=,/()\[\]%#?]*$')

    def test_gnuplot_that_fails(self):
        """The figures are there all the same, open, and the page says what is amiss."""
        stats = self.path('stats.json')
        with tempfile.TemporaryDirectory() as folder:
            page = self.report(stats, env={'PATH': folder})
            self.assertIn('gnuplot-nox', page.text)
            self.assertNotIn('svg', page.tags)
            self.assertEqual(len(page.figures['Idle share by device'][1]), 3)
            self.assertIn('gnuplot-nox', run('report', stats, '--out', self.path('x.html'), env={'PATH': folder}).stderr)
            fake = folder + '/gnuplot'
            for text in ('exit 1', 'echo nonsense', 'echo "<svg><script>1</script></svg>"', 'kill -9 $$', ':',
                         'while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done'):
                with open(fake, 'w') as f:
                    f.write('#!/bin/sh\n%s\n' % text)
                os.chmod(fake, 0o755)
                page = self.report(stats, env={'PATH': folder})
                self.assertIn('could not draw this', page.text)
                self.assertNotIn('svg', page.tags)
            here = os.path.relpath(folder)
            self.assertIn('gnuplot-nox', self.report(stats, env={'PATH': here}).text) # named from the root only

    def test_in_a_browser(self):
        names = ('chromium', 'chromium-browser', 'google-chrome')
        browser = next(filter(None, map(shutil.which, names)), None)
        if not browser or not GNUPLOT:
            self.skipTest('no browser here (one of %s)' % ', '.join(names) if not browser else 'no gnuplot here')
        self.report(self.path('stats.json'), self.path('trace.json'))
        picture = self.path('picture.png')
        command = [browser, '--headless', '--no-sandbox', '--disable-gpu', '--user-data-dir=' + self.path('browser'),
                   '--hide-scrollbars', '--window-size=800,1600']
        page = 'file://' + self.path('page.html')
        r = subprocess.run([*command, '--screenshot=' + picture, page], capture_output=True, text=True, timeout=300)
        if r.returncode != 0 or not os.path.exists(picture):
            self.skipTest('%s does not run here: %s' % (browser, r.stderr[-300:]))
        colours = count_colours(picture)
        self.assertGreater(colours.get((255, 255, 255), 0), 800 * 1600 / 2) # a page
        self.assertGreater(colours.get((0, 114, 178), 0), 100) # a bar's edge or a line, in the first colour
        r = subprocess.run([*command, '--dump-dom', page], capture_output=True, text=True, timeout=300)
        self.assertEqual(r.stdout.count('<svg'), self.read('page.html').count('<svg'))


def count_colours(path):
    """Of a PNG of 8 bits, by its definition (ISO/IEC 15948)."""
    with open(path, 'rb') as f:
        data = f.read()
    at, packed = 8, b''
    while at < len(data):
        n, kind = struct.unpack('>I4s', data[at:at + 8])
        if kind == b'IHDR':
            width, height, depth, colour = struct.unpack('>IIBB', data[at + 8:at + 18])
            assert depth == 8 and colour in (2, 6)
        elif kind == b'IDAT':
            packed += data[at + 8:at + 8 + n]
        at += 12 + n
    size = 3 if colour == 2 else 4
    raw, above, counts = zlib.decompress(packed), bytearray(width * size), {}
    for y in range(height):
        begin = y * (width * size + 1)
        filtered, row = raw[begin], bytearray(raw[begin + 1:begin + 1 + width * size])
        for i in range(width * size) if filtered else ():
            a, b, c = (row[i - size], above[i], above[i - size]) if i >= size else (0, above[i], 0)
            if filtered == 4:
                p = a + b - c
                guess = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            else:
                guess = (0, a, b, (a + b) // 2)[filtered]
            row[i] = (row[i] + guess) & 255
        for i in range(0, width * size, size):
            key = tuple(row[i:i + 3])
            counts[key] = counts.get(key, 0) + 1
        above = row
    return counts


if __name__ == '__main__':
    unittest.main(verbosity=2)
