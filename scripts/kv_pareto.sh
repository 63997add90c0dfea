#!/bin/sh
# Draws what `tandem eval --json` printed: bytes a position against divergence, with the Pareto front.
#
#     tandem eval --model M.gguf --text F.txt --kv auto:KLD=0.01 --json > eval.json
#     scripts/kv_pareto.sh eval.json kv.svg
#     scripts/kv_pareto.sh mine=a.json other=b.json kv.svg     # several in one picture
set -eu
usage() { sed -n '2,6s/^# \{0,1\}//p' "$0"; }
case "${1:---help}" in -h|--help) usage; exit 0;; esac
[ $# -ge 2 ] || { usage >&2; exit 2; }
command -v gnuplot >/dev/null ||
    { echo "kv_pareto.sh: gnuplot is not installed (Debian, Ubuntu: gnuplot-nox)" >&2; exit 69; }
for out; do :; done
program=$(mktemp); trap 'rm -f "$program"' EXIT
python3 - "$@" > "$program" <<'PYTHON'
import json, os, re, sys

LABELS_MAX = 20  # of a picture; with more points only the front has names


def fail(text):
    sys.exit('kv_pareto.sh: ' + text)


def read(argument):
    name, _, path = argument.rpartition('=')
    if not os.path.exists(path):
        name, path = '', argument
    try:
        with open(path, encoding='utf-8') as file:
            rows = json.load(file)
        points = [(float(row['bytes_per_position']), float(row['kld_mean']), plain(row['kv']), bool(row.get('chosen')),
                   not row.get('dominated'))
                  for row in rows]
        points[0]  # there is one
        return plain(name or os.path.basename(path)), next((p[2] for p in points if p[1] == 0), 'the base'), points
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as problem:
        fail('%s: not what `tandem eval --json` prints (%r)' % (path, problem))


def plain(text):
    return re.sub(r'[^A-Za-z0-9_=,.:@+ -]', '?', text)[:80]


def is_on_front(point, points):
    return not any(p[0] <= point[0] and p[1] <= point[1] and p[:2] != point[:2] for p in points)


*inputs, out = sys.argv[1:]
if os.path.exists(out) and out in [i.rpartition('=')[2] for i in inputs]:
    fail('%s is read: it is not written over' % out)
sets = [(name, base, [p for p in points if p[1] > 0]) for name, base, points in map(read, inputs)]
if not any(points for _, _, points in sets):
    fail('no cache diverges from the base: nothing to draw')
has_all = sum(len(points) for _, _, points in sets) <= LABELS_MAX
bytes_all = [p[0] for _, _, points in sets for p in points]
print('set terminal svg size 1000,640 dynamic noenhanced font "sans,13" background "white"')
print('set output "/dev/stdout"\nset grid lc "#dddddd"\nset logscale y\nset format y "%.0e"')
print('set xlabel "bytes a position (types of keys,values)"\nset ylabel "mean KL divergence from %s, nats"' % sets[0][1])
low, high = min(bytes_all), max(bytes_all)
print('set logscale x 2\nset xtics (%s)' % ', '.join('%d' % (f * 2 ** i) for i in range(1, 32) for f in (1, 1.25, 1.5, 1.75)))
print('set xrange [%g:%g]\nset key top right' % (0.75 * low, 1.1 * high))
plots = []
for i, (name, _, points) in enumerate(sets):
    points.sort()
    front = [p for p in points if p[4] and is_on_front(p, points)]
    named = points if has_all else [p for p in points if p in front or p[3]]
    for block, rows in (('all', points), ('front', front), ('named', named), ('chosen', [p for p in points if p[3]])):
        print('$%s%d << EOD' % (block, i))
        for x, y, kv, *_ in rows:
            print('%.17g %.17g "%s"' % (x, y, re.sub('(^|,)[kv]=', r'\1', kv)))
        print('EOD')
    color = ('#1f5fa8', '#b4451f', '#2f7d32', '#7b3fa0', '#8a6d00')[i % 5]
    plots += ['$all%d using 1:2 with points pt 7 ps 0.6 lc "%s" title "%s"' % (i, color, name),
              '$front%d using 1:2 with steps lw 1.5 lc "%s" notitle' % (i, color),
              '$named%d using 1:2:3 with labels right offset -0.6,-0.5 font ",10" tc "%s" notitle' % (i, color)]
    if any(p[3] for p in points):
        plots.append('$chosen%d using 1:2 with points pt 6 ps 1.8 lw 2 lc "%s" notitle' % (i, color))
print('plot ' + ', \\\n     '.join(plots))
PYTHON
gnuplot "$program" > "$out.part" && mv "$out.part" "$out"
