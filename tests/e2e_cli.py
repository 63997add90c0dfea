#!/usr/bin/env python3
"""The command line as a user meets it: help, usage errors, configuration files, hostile files.

usage: e2e_cli.py TANDEM   (run from the source root; standard library only)"""
import json
import os
import signal
import socket
import subprocess
import sys
import time
import tempfile
import unittest
import unittest.mock

TANDEM = os.path.abspath(sys.argv.pop(1)) if len(sys.argv) > 1 else 'build/tandem'
TARGET = 'configs/tales/tales-target.q8_0.gguf'
DRAFT = 'configs/tales/tales-draft.q8_0.gguf'
GOLDEN = os.environ.get('TD_GOLDEN', 'tests/data/golden')
COMMANDS = ['generate', 'draft', 'devices', 'inspect', 'tokenize', 'logits', 'bench', 'report', 'plan']


def run(*args, stdin=None, timeout=120):
    return subprocess.run([TANDEM, *args], input=stdin, capture_output=True, text=True, timeout=timeout)


def generate(*args, **kw):
    return run('generate', '--target', TARGET, '--device', 'host:1', '--quiet', *args, **kw)


def read(path, mode='r'):
    with open(path, mode) as f:
        return f.read()


class Cli(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)

    def path(self, name, text=None):
        p = os.path.join(self.dir.name, name)
        if text is not None:
            with open(p, 'w') as f:
                f.write(text)
        return p

    def fails(self, result, code, *needles):
        self.assertEqual(result.returncode, code, result.stderr)
        for needle in needles:
            self.assertIn(needle, result.stderr)

    def test_help_and_version_everywhere(self):
        for command in COMMANDS:
            r = run(command, '--help')
            self.assertEqual(r.returncode, 0)
            self.assertIn('usage: tandem ' + command, r.stdout)
            r = run(command, '--version')
            self.assertEqual((r.returncode, r.stdout.split()[0]), (0, 'tandem'))
        self.assertEqual(run('--help').returncode, 0)
        self.assertEqual(run('--version').returncode, 0)

    def test_usage_errors_name_flag_value_and_range(self):
        self.fails(run(), 2)
        self.fails(run('generat'), 2, '"generat"')
        self.fails(generate('--prompt', 'x', '--temp', 'hot'), 2, '--temp', '"hot"', '0..100')
        self.fails(generate('--prompt', 'x', '--draft-max', '64'), 2, '--draft-max', '"64"', '1..63')
        self.fails(generate('--prompt', 'x', '-n', '0'), 2, '-n', '"0"')
        self.fails(generate('--prompt', 'x', '--kv-k', 'q5_k'), 2, '--kv-k', '"q5_k"', 'q8_0')
        self.fails(generate('--prompt', 'x', '--kv-rotate', 'k=on,k=off'), 2, '--kv-rotate', 'k twice')
        for rotate in 'of', 'k=off,v=', 'k=of', 'on,off', ',', 'k', 'k=on,', 'v=on,k=off,':
            self.fails(generate('--prompt', 'x', '--kv-rotate', rotate), 2, '--kv-rotate',
                       'allowed: auto, on, off')
        for keep, *needles in (('first', 'allowed: LAYERS=TYPE'), ('7-4=f16', '"7-4"', 'a range as 4-7'),
                               ('0=q5_k', '"q5_k"', 'q8_0'), ('10=f16', 'layer 10 of', '0..9, first, last')):
            self.fails(generate('--prompt', 'x', '--kv-keep', keep), 2, '--kv-keep', *needles)
        self.fails(generate('--prompt', 'x', '--draft-kv-k', 'q8_0'), 2, '--draft-kv-k', 'need --draft')
        self.fails(run('plan', '--target', TARGET, '--draft-kv-v', 'q8_0'), 2, '--draft-kv-v need --draft D.gguf or --drafts')
        layers = self.path('layers.json', '{"0-1": {"k": "f17"}}')
        self.fails(generate('--prompt', 'x', '--kv-layers', layers), 2, 'layers.json: 0-1.k: "f17"; allowed: f32')
        self.fails(generate('--prompt', 'x', '--tmep', '1'), 2, '--tmep', '--temp')
        self.fails(generate('--prompt', 'x', '--in', 'y'), 2, '--prompt')
        self.fails(generate(), 2, '--prompt')
        self.fails(run('generate', '--prompt', 'x'), 2, '--target')
        self.fails(generate('--prompt', 'x', '--temp'), 2, '--temp')
        self.fails(generate('--prompt', 'x', '--quiet=yes'), 2, '--quiet')

    def test_devices_are_checked(self):
        for spec in ['gpu', 'host:0', 'host:x', 'vulkan:', 'host:1@3-1', 'host:1@0-99', 'vulkan:99']:
            r = run('generate', '--target', TARGET, '--device', spec, '--prompt', 'x')
            self.fails(r, 2, 'device')
        self.fails(run('generate', '--target', TARGET, '--device', 'host:1@0-3', '--prompt', 'x'), 2, '4..9')

    def test_devices_json(self):
        devices = json.loads(run('devices', '--json').stdout)
        self.assertEqual(devices[0]['device'], 'host')
        self.assertTrue(devices[0]['usable'])
        self.assertGreater(devices[0]['heaps'][0]['bytes'], 0)

    def test_config_errors_name_file_key_value_and_allowed(self):
        bad = [('{"sampling": {"tmep": 1}}', 'tmep', 'temp'),
               ('{"sampling": {"temp": "1"}}', 'sampling.temp', '"1"'),
               ('{"sampling": {"temp": 101}}', 'sampling.temp', '101', '100'),
               ('{"draft": {"max": 0}}', 'draft.max', '0', '63'),
               ('{"draft": {"max": 5.0}}', 'draft.max', '5.0'),
               ('{"cache": {"k": "q5_k"}}', 'cache.k', 'q5_k', 'q8_0'),
               ('{"cache": {"keep": ["0=f16", "1-=f16"]}}', 'cache.keep', '"1-"', 'first, last'),
               ('{"draft": {"kv_k": "f15"}}', 'draft.kv_k', 'f15', 'q8_0'),
               ('{"run": {"n": 1, "n": 2}}', 'n'),
               ('{"target": []}', 'target'),
               ('{"tarket": {}}', 'tarket', 'target'),
               ('[]', ''), ('{', ''), ('', '')]
        for text, *needles in bad:
            p = self.path('bad.json', text)
            self.fails(run('generate', '--config', p, '--prompt', 'x'), 65, 'bad.json', *needles)
        self.fails(run('generate', '--config', self.path('none.json'), '--prompt', 'x'), 74, 'none.json')

    def test_flags_win_over_config(self):
        p = self.path('c.json', json.dumps({'target': {'model': TARGET, 'devices': ['host:1', 'host:1']},
                                            'sampling': {'temp': 0}, 'run': {'n': 3}}))
        out = self.path('o.jsonl')
        args = ['generate', '--config', p, '--in', '-', '--quiet']
        r = run(*args, '--out', out, '--stats', self.path('s.json'), stdin='{"prompt": "The fox"}\n')
        self.assertEqual(r.returncode, 0, r.stderr)
        self.assertEqual(len(json.loads(read(out))['tokens']), 3)
        self.assertEqual(len(json.loads(read(self.path('s.json')))['stages']), 2)
        r = run(*args, '-n', '5', '--device', 'host:1', '--stats', self.path('s.json'),
                stdin='{"prompt": "The fox"}\n')
        self.assertEqual(len(json.loads(r.stdout)['tokens']), 5)
        self.assertEqual(len(json.loads(read(self.path('s.json')))['stages']), 1)

    def test_layers_of_other_types(self):
        stats, layers = self.path('s.json'), self.path('l.json', '{"last": {"k": "f16"}, "3-4": {"v": "f32"}}')
        config = self.path('c.json', json.dumps({
            'target': {'model': TARGET, 'devices': 'host:1'}, 'draft': {'model': DRAFT, 'device': 'host:1', 'max': 4},
            'cache': {'k': 'q4_0', 'v': 'q8_0', 'keep': ['first=f16', '4=q4_0/-'], 'layers': layers}}))
        for args, kept, draft in (([], ['0=f16', '3-4=-/f32', '9=f16/-'], ('F16', 'F16')),
                                  (['--kv-keep', '5=bf16', '--draft-kv-v', 'q5_1'], ['5=bf16'], ('F16', 'Q5_1'))):
            r = run('generate', '--config', config, *args, '--prompt', 'x', '-n', '2', '--no-measure', '--stats', stats)
            self.assertEqual(r.returncode, 0, r.stderr)
            s = json.loads(read(stats))
            self.assertEqual(s['config']['kv_keep'], kept)
            self.assertEqual((s['config']['draft_kv_k'], s['config']['draft_kv_v']), draft)

        def n_bytes(*args):
            r = run('plan', '--target', TARGET, '--device', 'host:1', '--kv-k', 'q8_0', '--kv-v', 'q8_0', '--ctx', '512',
                    '--no-measure', '--json', *args)
            return json.loads(r.stdout)['placement'][0]['bytes']

        # Two heads of 64 elements: f16 takes 256 bytes a position and layer, q8_0 136.
        self.assertEqual(n_bytes('--kv-keep', 'first,2-3=f16/-') - n_bytes(), 3 * 512 * (256 - 136))
        r = run('plan', '--config', config, '--no-measure')
        self.assertIn('  layers 0=f16 3-4=-/f32 9=f16/-\n', r.stdout)
        r = run('bench', '--model', TARGET, '--device', 'host:1', '--pp', '8', '--tg', '1', '--repeat', '1', '--widths',
                '1', '--kv-k', 'q8_0', '--kv-keep', 'last=f16', '--json')
        self.assertEqual(r.stderr, '')
        row = json.loads(r.stdout)
        self.assertEqual((row['kv_k'], row['kv_v'], row['kv_keep']), ('q8_0+keep', 'f16', '9=f16/-'))

    def test_types_that_a_family_does_not_bear_are_told_once(self):
        family = ['generate', '--device', 'host:1', '--no-measure', '--prompt', 'a', '-n', '1', '--quiet', '--target']
        line = 'cache K Q8_0, V F16; advised for gpt-oss: K F16, V F16 or better (gpt-oss-20b with q8_0 at 8k: median'
        for model, args, n in (('gpt-oss', ['--kv-k', 'q8_0'], 1), ('gpt-oss', [], 0), ('gpt-oss', ['--kv-k', 'bf16'], 0),
                               ('llama', ['--kv-k', 'q8_0'], 0)):
            r = run(*family, 'tests/data/golden/models/%s/model.gguf' % model, *args)
            self.assertEqual(r.returncode, 0, r.stderr)
            self.assertEqual(r.stderr.count(line), n, r.stderr)
            self.assertEqual(len(r.stderr.splitlines()), n, r.stderr)

    def test_a_prompt_is_text_on_stdout(self):
        r = generate('--prompt', 'The fox said', '-n', '8', '--temp', '0')
        self.assertEqual(r.returncode, 0, r.stderr)
        self.assertTrue(r.stdout.startswith('The fox said'))
        self.assertGreater(len(r.stdout), len('The fox said') + 4)

    def test_result_line_has_its_fields(self):
        r = generate('--draft', DRAFT, '--in', '-', '-n', '8', stdin='{"id": "a", "prompt": "The fox"}\n')
        line = json.loads(r.stdout)
        self.assertEqual(sorted(line), sorted(
            'id status text tokens reason error drafted accepted rounds prompt_tokens ttft_ms ms finished_s '
            'placement config '
            'input_sha config_sha model_sha'.split()))
        self.assertEqual((line['id'], line['status'], line['reason'], len(line['tokens'])),
                         ('a', 'ok', 'length', 8))

    def test_resuming_names_what_computes_differently(self):
        out = self.path('r.jsonl')
        args = ['--out', out, '--in', '-', '-n', '3']
        first, both = '{"id": "a", "prompt": "The fox"}\n', '{"id": "b", "prompt": "The hen"}\n'
        both = first + both
        self.assertEqual(generate(*args, stdin=first).returncode, 0)
        line = json.loads(read(out))
        self.assertIn('layers=0 on host', line['config'])
        self.fails(generate(*args, '--kv-k', 'q8_0', stdin=both), 65,
                   'cache is "F16,F16" there and "Q8_0,F16" now')
        self.fails(generate(*args, '--kv-rotate', 'k=on', stdin=both), 65,
                   'cache is "F16,F16" there and "F16 rotated,F16" now')
        self.fails(generate(*args, '--kv-keep', '2=q8_0/-', stdin=both), 65,
                   'cache is "F16,F16" there and "F16,F16 2-2 Q8_0,-" now')
        # As an older tandem, and a GPU's other driver, would have left it.
        line.update(config=line['config'].replace('layers=0 on host', 'layers=0 on GPU (radv 1.2)')
                    .replace('tandem=', 'tandem=0.0.'), config_sha='0123456789abcdef')
        self.path('r.jsonl', json.dumps(line) + '\n')
        r = generate(*args, stdin=both)
        self.fails(r, 65, 'layers is "0 on GPU (radv 1.2)" there and "0 on host" now', 'tandem is "0.0.',
                   '--force')
        self.assertEqual(generate(*args, '--force', stdin=both).returncode, 0)
        self.assertEqual([json.loads(x)['id'] for x in read(out).splitlines()], ['a', 'b'])

    def test_stop_strings_across_tokens(self):
        full = json.loads(generate('--in', '-', '-n', '60', '--temp', '0',
                                   stdin='{"prompt": "Once upon a time"}\n').stdout)['text']
        for at in (7, 20, 41):
            stop = full[at:at + 5]
            r = json.loads(generate('--in', '-', '-n', '60', '--temp', '0', '--stop', stop,
                                    stdin='{"prompt": "Once upon a time"}\n').stdout)
            self.assertEqual((r['text'], r['reason']), (full[:full.index(stop)], 'stop'))

    def test_endpoints_off_loopback_are_refused(self):
        for endpoint in ['tcp://*:5555', 'tcp://0.0.0.0:5555', 'tcp://192.168.1.2:5555', 'udp://x', 'x']:
            r = generate('--draft-endpoint', endpoint, '--prompt', 'x')
            self.fails(r, 2, endpoint)
            self.fails(run('draft', '--model', DRAFT, '--bind', endpoint), 2, endpoint)

    def test_a_worker_over_tcp(self):
        with socket.socket() as s:  # a port that is free
            s.bind(('127.0.0.1', 0))
            endpoint = 'tcp://127.0.0.1:%d' % s.getsockname()[1]
        args = ['--in', '-', '-n', '60', '--temp', '0.7', '--seed', '3']
        lines = ''.join('{"id": "%d", "prompt": "Once upon a time"}\n' % i for i in range(6))
        wanted = [json.loads(x)['tokens'] for x in generate(*args, stdin=lines).stdout.splitlines()]
        worker = subprocess.Popen([TANDEM, 'draft', '--model', DRAFT, '--bind', endpoint],
                                  stderr=subprocess.PIPE, text=True)
        try:
            self.assertIn(endpoint, worker.stderr.readline())
            accepted = 0
            for _ in range(30):  # on a busy machine a run may be over before the worker has joined
                r = generate('--draft-endpoint', endpoint, '--draft-fixed', '2', *args, stdin=lines)
                got = [json.loads(x) for x in r.stdout.splitlines()]
                self.assertEqual([x['tokens'] for x in got], wanted)
                accepted += sum(x['accepted'] for x in got)
                if accepted:
                    break
            self.assertGreater(accepted, 0)
            self.fails(run('draft', '--model', DRAFT, '--bind', endpoint), 69, endpoint)
        finally:
            worker.send_signal(signal.SIGTERM)
            self.assertEqual(worker.wait(60), 143)
            worker.stderr.close()

    def test_another_vocabulary_is_refused_with_the_first_token(self):
        other = os.path.join(GOLDEN, 'models', 'llama', 'model.gguf')
        if not os.path.exists(other):
            self.skipTest(other + ' is not here')
        r = generate('--draft', other, '--prompt', 'x', '-n', '4')
        self.fails(r, 69, "too far from the target's", 'first that differs is token 0:')

    def test_messages_are_written_by_a_chat_template(self):
        """The pair's vocabulary has no control tokens, so the same text may be given as it is."""
        chat = json.dumps({'messages': [{'role': 'system', 'content': 'Be brief.'},
                                        {'role': 'user', 'content': [{'type': 'text', 'text': 'A fox'}]}]})
        text = json.dumps({'prompt': '<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nA fox<|im_end|>\n'
                                     '<|im_start|>assistant\n'})
        r = generate('--in', '-', '-n', '8', '--temp', '0', '--chat-template', 'chatml', stdin=chat + '\n' + text)
        self.assertEqual(r.returncode, 0, r.stderr)
        a, b = map(json.loads, r.stdout.splitlines())
        self.assertEqual((a['tokens'], a['prompt_tokens']), (b['tokens'], b['prompt_tokens']))
        self.assertNotEqual(a['input_sha'], b['input_sha'])
        # The file has no template of its own, and not every name is one.
        r = generate('--in', '-', '-n', '8', stdin=chat)
        self.assertEqual(r.returncode, 1, r.stderr)
        self.assertIn('no tokenizer.chat_template', json.loads(r.stdout)['error'])
        self.assertIn('chatml', json.loads(r.stdout)['error'])
        self.fails(generate('--prompt', 'x', '--chat-template', 'chat'), 2, '--chat-template', 'chat', 'llama3')
        bad = self.path('bad.jinja', '{% for m in messages %}\n  {{ m. }}\n{% endfor %}')
        self.fails(generate('--prompt', 'x', '--chat-template', bad), 65, 'bad.jinja', 'line 2, column 9')
        self.fails(generate('--prompt', 'x', '--chat-template', self.path('none.jinja')), 74, 'none.jinja')
        # Another template is another input: a results file does not mix them.
        lines, out = self.path('chat.jsonl', chat), self.path('out.jsonl')
        for name, code in (('chatml', 0), ('chatml', 0), ('zephyr', 65)):
            r = generate('--in', lines, '--out', out, '-n', '4', '--chat-template', name)
            self.assertEqual(r.returncode, code, r.stderr)

    def test_a_template_of_ones_own(self):
        """What a line says beside its messages reaches the template; what the template refuses is an error line."""
        own = self.path('own.jinja', "{% if tools %}{{ tools | length }} {{ tools[0].name }} {% endif %}"
                        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}{{ c.id }}{% endfor %}"
                        "{% if m.content == 'no' %}{{ raise_exception('Not ' ~ m.role) }}{% endif %}{% endfor %}"
                        "{{ enable_thinking }}")
        lines = [{'messages': [{'role': 'user', 'content': 'The fox'},
                               {'role': 'assistant', 'tool_calls': [{'id': ' c1 '}]}],
                  'tools': [{'name': 'n'}], 'chat_template_kwargs': {'enable_thinking': False}},
                 {'messages': [{'role': 'user', 'content': 'no'}]},
                 {'prompt': '1 n The fox c1 False'}]
        r = generate('--in', '-', '-n', '4', '--temp', '0', '--chat-template', own,
                     stdin='\n'.join(map(json.dumps, lines)))
        self.assertEqual(r.returncode, 1, r.stderr)
        a, b, c = map(json.loads, r.stdout.splitlines())
        a, b, c = sorted((a, b, c), key=lambda x: int(x['id'].split('-')[1]))
        self.assertEqual((a['tokens'], a['prompt_tokens']), (c['tokens'], c['prompt_tokens']))
        self.assertIn('Not user', b['error'])
        self.assertIn('line 1, column', b['error'])

    def test_a_resumed_file_keeps_the_day(self):
        own = self.path('day.jinja', "{{ strftime_now('%d %B %Y') }} {{ messages[0].content }}")
        line = json.dumps({'id': 'a', 'messages': [{'role': 'user', 'content': 'The fox'}]})
        lines, out = self.path('day.jsonl', line), self.path('day-out.jsonl')
        args = ['--in', lines, '--out', out, '-n', '4', '--temp', '0', '--chat-template', own]
        with open(out, 'w') as f:
            f.write(json.dumps({'id': 'z', 'status': 'ok', 'input_sha': 'x', 'config_sha': 'y', 'date': '2020-02-29'}) + '\n')
        self.assertEqual(generate(*args).returncode, 0)
        first = json.loads(read(out).splitlines()[1])
        self.assertEqual(first['date'], '2020-02-29')
        self.assertEqual(generate(*args).returncode, 0)  # the same input: nothing to do
        self.assertEqual(len(read(out).splitlines()), 2)
        text = self.path('day-text.jsonl', json.dumps({'prompt': '29 February 2020 The fox'}))
        r = generate('--in', text, '-n', '4', '--temp', '0')
        self.assertEqual(json.loads(r.stdout)['tokens'], first['tokens'])
        os.remove(out)
        self.assertEqual(generate(*args).returncode, 0)
        self.assertEqual(json.loads(read(out))['date'], time.strftime('%Y-%m-%d'))

    def test_control_tokens_of_a_prompt(self):
        lines = ['{"prompt": "</s>"}', '{"prompt": "</s>", "special": true}']
        a, b = map(json.loads, generate('--in', '-', '-n', '1', stdin='\n'.join(lines)).stdout.splitlines())
        self.assertGreater(a['prompt_tokens'], b['prompt_tokens'])
        self.assertEqual(b['prompt_tokens'], 2)
        self.assertNotEqual(a['input_sha'], b['input_sha'])
        plain = generate('--prompt', '</s>', '-n', '1', '--stats', self.path('plain.json'))
        special = generate('--prompt', '</s>', '--special', '-n', '1', '--stats', self.path('special.json'))
        self.assertEqual((plain.returncode, special.returncode), (0, 0), special.stderr)
        counts = [json.loads(read(self.path(n)))['totals']['prompt_tokens'] for n in ('plain.json', 'special.json')]
        self.assertEqual(counts, [a['prompt_tokens'], 2])
        self.fails(generate('--in', '-', '--special', stdin=''), 2, '--special', '--prompt')

    def test_bad_files(self):
        for name, text in [('empty.gguf', ''), ('text.gguf', 'this is no model file, whatever it is called')]:
            p = self.path(name, text)
            self.fails(run('inspect', p), 65, name)
            self.fails(run('generate', '--target', p, '--prompt', 'x'), 65, name)
        self.fails(run('inspect', self.path('none.gguf')), 74, 'none.gguf')
        cut = self.path('cut.gguf')
        with open(TARGET, 'rb') as f, open(cut, 'wb') as g:
            g.write(f.read(3_000_000))
        self.fails(run('generate', '--target', cut, '--prompt', 'x'), 65, 'cut.gguf')

    def test_auto_drafts_by_the_head_of_the_file_or_else_by_the_texts(self):
        head = 'tests/data/golden/mtp/qwen35-informed/model.gguf'
        broken, stats = self.path('broken.gguf'), self.path('s.json')
        with open(head, 'rb') as f, open(broken, 'wb') as g:
            g.write(f.read().replace(b'nextn.eh_proj', b'nextn.eh_proc'))
        config = self.path('auto.json', '{"draft": {"model": "auto"}}')
        for model, is_mtp, why in ((head, True, 'has a head that is whole'), (broken, False, 'nextn.eh_proj'),
                                   (TARGET, False, 'tales-target.q8_0.gguf: no head for multi-token prediction')):
            args = ['generate', '--target', model, '--device', 'host:1', '--prompt',
                    'the fox and the fox and the fox and', '-n', '100', '--temp', '0', '--ignore-eos', '--draft-fixed', '3',
                    '--quiet', '--stats', stats]
            plain = run(*args)
            self.assertEqual((plain.returncode, plain.stderr), (0, ''))
            for auto in (['--draft', 'auto'], ['--config', config]):
                r = run(*args, *auto)
                self.assertEqual((r.returncode, r.stdout), (0, plain.stdout), r.stderr)
                self.assertEqual(r.stderr.count('draft: auto: ' + ('by mtp and from the texts' if is_mtp else 'from the texts')), 1, r.stderr)
                self.assertIn(why, r.stderr)
                s = json.loads(read(stats))
                self.assertEqual(s['config']['draft'], 'mtp' if is_mtp else None)
                looked_up, drafted = s['totals']['looked_up'], s['totals']['drafted']
                self.assertGreater(looked_up, 0)
                (self.assertLess if is_mtp else self.assertEqual)(looked_up, drafted)
            plan = ['plan', '--target', model, '--device', 'host:1', '--no-measure', '--json']
            auto, none = (json.loads(run(*plan, *draft).stdout)['placement'][0]['bytes']
                          for draft in (['--draft', 'auto'], []))
            if is_mtp:
                self.assertGreater(auto, none)
                continue
            self.assertEqual(auto, none)
            r = run(*plan, '--draft', 'mtp:' + model)
            self.fails(r, 65, why)
            self.assertEqual(r.stderr.count(model), 1, r.stderr)
        self.fails(generate('--prompt', 'x', '--draft', 'auto', '--draft-device', 'host:1'), 2, '--draft auto')

    def test_a_head_and_a_model_draft_together(self):
        model, stats = 'tests/data/golden/mtp/qwen35-informed/model.gguf', self.path('s.json')
        args = ['generate', '--target', model, '--device', 'host:1', '--prompt', 'the fox and the fox and the', '-n', '100',
                '--temp', '0', '--ignore-eos', '--draft-fixed', '3', '--quiet', '--stats', stats]
        plain = run(*args)
        self.assertEqual((plain.returncode, plain.stderr), (0, ''))
        for head in 'mtp', 'mtp:' + model:
            both = f'{head},{model}'
            config = self.path('both.json', json.dumps({'draft': {'model': both, 'device': 'host:1'}}))
            for draft in ['--draft', both, '--draft-device', 'host:1'], ['--config', config], \
                    ['--draft', both, '--draft-device', 'host:1', '--draft-ngram']:
                r = run(*args, *draft)
                self.assertEqual((r.returncode, r.stdout), (0, plain.stdout), r.stderr)
                s = json.loads(read(stats))
                self.assertEqual((s['config']['draft'], s['config']['draft_head']), (model, head.removeprefix('mtp:')))
                self.assertGreaterEqual(s['totals']['drafted'], s['totals']['accepted'])
                if os.cpu_count() > 1 and '--draft-ngram' not in draft:  # else they take turns, without a chain
                    self.assertGreater(s['totals']['by_head'], 0)
                    self.assertGreater(s['totals']['drafted'], s['totals']['by_head'])
        plan = json.loads(run('plan', '--config', self.path('p.json', json.dumps(
            {'target': {'model': model, 'devices': 'host:1'}, 'draft': {'model': 'mtp,' + model}})), '--no-measure', '--json').stdout)
        self.assertIn('placement', plan)
        for wrong in 'mtp,', 'mtp,mtp', 'mtp,auto', 'mtp,none', 'mtp,mtp:' + model, model + ',mtp':
            self.fails(generate('--prompt', 'x', '--draft', wrong), 2, 'mtp,D.gguf')
        self.fails(generate('--prompt', 'x', '--draft', 'mtp:,' + model), 2, 'without FILE')
        self.fails(generate('--prompt', 'x', '--draft', 'mtp,' + model), 65, 'no head')

    def test_plan_ranks_the_drafts_of_a_folder(self):
        folder = self.path('drafts')
        os.mkdir(folder)
        plan = ['plan', '--target', TARGET, '--device', 'host:1', '--draft-device', 'host:1', '--drafts', folder]
        self.fails(run(*plan), 65, folder, '.gguf')
        self.fails(run(*plan[:-1], folder + '/none'), 74, folder + '/none')
        self.fails(run(*plan, '--draft', DRAFT), 2, '--drafts')
        self.fails(run('plan', '--target', TARGET, '--text', __file__), 2, '--drafts')
        with open(os.path.join(folder, 'a-broken.gguf'), 'w') as f:
            f.write('x')
        other = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'other_vocab.py')
        for name, flags in ('foreign', ['--replace', '0.5']), ('nonsense', ['--scramble']):
            subprocess.run([sys.executable, other, DRAFT, os.path.join(folder, name + '.gguf'), *flags], check=True,
                           capture_output=True)
        nonsense, hidden = os.path.join(folder, 'nonsense.gguf'), os.path.join(folder, 'nonsense')
        os.rename(nonsense, hidden)
        self.fails(run(*plan), 69, 'none of 2 files', 'a-broken.gguf')
        os.rename(hidden, nonsense)
        for name, path in ('tales.gguf', DRAFT), ('itself.gguf', TARGET):
            os.symlink(os.path.abspath(path), os.path.join(folder, name))
        config = self.path('best.json')
        r = run(*plan, '--text', 'tests/data/tale.txt', '--json', '--write-config', config)
        self.assertEqual((r.returncode, r.stderr), (0, ''))
        j = json.loads(r.stdout)
        drafts = {os.path.basename(d['file']): d for d in j['drafts']}
        self.assertEqual([os.path.basename(d['file']) for d in j['not_used']], ['a-broken.gguf', 'foreign.gguf'])
        self.assertIn('two thirds', j['not_used'][1]['why'])
        # What they are worth depends on times, but not what the target makes of them.
        self.assertEqual(list(drafts)[-1], 'nonsense.gguf')
        self.assertEqual(drafts['nonsense.gguf']['draft_tokens'], 0)
        self.assertLess(drafts['nonsense.gguf']['acceptance'], 0.05)
        self.assertEqual(drafts['itself.gguf']['survival'], [1.0] * 8)
        survival = drafts['tales.gguf']['survival']
        self.assertEqual(survival, sorted(survival, reverse=True))
        self.assertTrue(0.4 < survival[0] < 0.95, survival)
        self.assertTrue(0.02 < survival[7] < 0.5, survival)
        for d in drafts.values():
            tokens = 1 + sum(d['survival'][:d['draft_tokens']])
            self.assertAlmostEqual(d['tokens_per_verification'], tokens)
            self.assertTrue(d['step_ms'] > 0 and d['bytes'] > 0, d)
        self.assertEqual([d['draft_tokens'] > 0 for d in j['drafts']],
                         sorted((d['draft_tokens'] > 0 for d in j['drafts']), reverse=True))
        paying = [d['tokens_per_second'] for d in j['drafts'] if d['draft_tokens']]
        self.assertEqual(paying, sorted(paying, reverse=True))
        with open(config) as f:
            written = json.load(f)
        self.assertEqual(written['target']['model'], TARGET)
        if paying:
            self.assertEqual(written['draft'], {'model': j['drafts'][0]['file'], 'device': 'host:1',
                                                'max': j['drafts'][0]['draft_tokens']})
        r = run('generate', '--config', config, '--prompt', 'Once', '-n', '8', '--quiet')
        self.assertEqual(r.returncode, 0, r.stderr)
        table = run(*plan).stdout
        self.assertIn('not used: foreign.gguf: ', table)
        self.assertTrue(table.index('tales.gguf') < table.index('nonsense.gguf') < table.index('a-broken.gguf'))

    def test_inspect_and_plan(self):
        j = json.loads(run('inspect', TARGET, '--json').stdout)
        self.assertEqual((j['architecture'], j['parameters']['layers'], j['runnable']), ('llama', 10, True))
        self.assertEqual(len(j['layer_bytes']), 10)
        r = run('plan', '--target', TARGET, '--device', 'host:1', '--device', 'host:1@7-9')
        self.assertIn('0..6', r.stdout)
        with unittest.mock.patch.dict(os.environ, TANDEM_CACHE_DIR=''):
            j = json.loads(run('plan', '--target', TARGET, '--device', 'host:1', '--device', 'host:1',
                               '--no-measure', '--json').stdout)
        layers = [(p['first_layer'], p['last_layer']) for p in j['placement']]
        self.assertEqual((layers[0][0], layers[-1][1], j['measured']), (0, 9, False))
        j = json.loads(run('plan', '--hardware', 'configs/hardware/strix-halo-3090.json', '--json').stdout)
        fits = {m['model']: m['fits'] for m in j}
        self.assertTrue(fits['gpt-oss-120b'])
        self.assertFalse(fits['Kimi K2.5 UD-Q2_K_XL'])
        self.fails(run('plan', '--hardware', 'configs/tales.json'), 65, 'tales.json')
        pages = ''
        for page in 'planning', 'many-machines':
            with open('docs/%s.md' % page) as f:
                pages += f.read()
        for name, n in (('strix-halo-x4-2025', 4), ('strix-halo-x4', 2 + 24 + 4)):  # what the manual shows of them
            text = run('plan', '--hardware', 'configs/hardware/%s.json' % name).stdout
            shown = text.split('All machines with')[0] if n == 4 else text
            rows = [line for line in shown.splitlines() if line.startswith('| ') and not line.startswith('| model ')]
            self.assertEqual(len(rows), n, text)
            for line in rows:
                self.assertIn(line + '\n', pages)
        self.fails(run('plan', '--hardware', 'x.json', '--target', TARGET), 2, '--hardware')
        self.fails(run('plan', '--target', TARGET, '--for', 'speed'), 2, 'stream')

    def test_logits_by_rows_are_bit_identical(self):
        tokens = ','.join(str(i) for i in range(300, 340))
        files = []
        for rows in (['--step'], ['--rows', '1'], ['--rows', '7'], ['--rows', '64']):
            p = self.path('l%d' % len(files))
            r = run('logits', '--model', TARGET, '--tokens', tokens, '--device', 'host:2', *rows, '--out', p)
            self.assertEqual(r.returncode, 0, r.stderr)
            files.append(read(p, 'rb'))
        self.assertEqual(len(files[0]), 40 * 4096 * 4)
        self.assertTrue(all(f == files[0] for f in files))
        self.fails(run('logits', '--model', TARGET, '--tokens', '1,4096', '--out', self.path('x')), 65, '"4096"', '4095')
        self.fails(run('logits', '--model', TARGET, '--tokens', '1,a', '--out', self.path('x')), 65, '"a"')

    def test_tokenize(self):
        one = json.loads(run('tokenize', '--model', TARGET, '--text', 'The fox').stdout)
        lines = run('tokenize', '--model', TARGET, '--in', '-', stdin='{"text": "The fox"}\n{"text": ""}\n').stdout
        self.assertEqual([json.loads(x) for x in lines.splitlines()], [one, []])
        with_bos = json.loads(run('tokenize', '--model', TARGET, '--text', 'The fox', '--add-special').stdout)
        self.assertEqual(with_bos, [1] + one)
        r = run('tokenize', '--model', TARGET, '--in', '-', stdin='{"text": 1}\n{"text": "The fox"}\n{\n')
        first, second, third = [json.loads(x) for x in r.stdout.splitlines()]
        self.assertEqual((r.returncode, second, first['line'], third['line']), (1, one, 1, 3))
        self.assertIn('text', first['error'])

    def test_tokenize_goes_on_after_a_text_it_cannot_encode(self):
        model = 'tests/data/golden/models/llama/model.gguf'
        with open(model, 'rb') as f:
            data = f.read()
        at = data.index(b'\1\0\0\0\0\0\0\0Z') + 8  # the token of a byte
        poor = self.path('poor.gguf')
        with open(poor, 'wb') as f:
            f.write(data[:at] + b'\x7f' + data[at + 1:])
        texts = [json.dumps({'text': t}) for t in ('a', 'aZb', 'b')]
        r = run('tokenize', '--model', poor, '--in', '-', stdin='\n'.join(texts))
        lines = [json.loads(x) for x in r.stdout.splitlines()]
        self.assertEqual((r.returncode, len(lines)), (1, 3), r.stderr)
        self.assertTrue(isinstance(lines[0], list) and isinstance(lines[2], list))
        self.assertEqual(lines[1]['line'], 2)
        self.assertIn('0x5a', lines[1]['error'])

    def test_logits_take_long_rope_factors_from_the_context(self):
        model, files = 'tests/data/golden/models/phi3/model.gguf', []
        for i, context in enumerate(([], ['--ctx', '512'], ['--ctx', '513'], ['--ctx', '1024'])):
            files.append(self.path('ctx%d' % i))
            r = run('logits', '--model', model, '--tokens', '1,2,3,4,5', '--device', 'host:1', '--out', files[-1],
                    *context)
            self.assertEqual(r.returncode, 0, r.stderr)
        short, same, long, longer = [read(f, 'rb') for f in files]
        self.assertTrue(short == same and short != long and long == longer)
        self.fails(run('logits', '--model', model, '--tokens', '1,2,3', '--ctx', '2', '--out', files[0]), 2, '--ctx')

    def test_bench_json(self):
        r = run('bench', '--model', DRAFT, '--device', 'host:1', '--pp', '16', '--tg', '4', '--widths', '1,4',
                '--repeat', '1', '--json')
        j = json.loads(r.stdout)
        self.assertGreater(j['pp16'], 0)
        self.assertGreater(j['tg4'], 0)
        self.assertEqual(sorted(j['verify']), ['1', '4'])
        self.assertEqual(j['verify']['1']['c'], 1)
        self.fails(run('bench', '--model', DRAFT, '--widths', '1,65'), 2, '--widths')


if __name__ == '__main__':
    unittest.main(verbosity=1)
