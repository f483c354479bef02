// The examples of docs/routing.md are rules that load, and its limits are those of the program.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { formatConfigError, loadConfig } from '../../../config/load.ts';
import { DFA_STATES_MAX, regexProblem } from '../../../core/routing/regex-dfa.ts';
import { REPEAT_MAX } from '../../../core/routing/regex-syntax.ts';

const page = readFileSync(new URL('../../../docs/routing.md', import.meta.url), 'utf8');
const examples = [...page.matchAll(/```yaml\n(.*?)```/gs)].map(([, text]) => text!);

for (const [index, example] of examples.entries()) {
  test(`example ${index + 1} of docs/routing.md is valid`, () => {
    const backends = new Set([...example.matchAll(/backendRefs: \[\{name: ([\w-]+)/g)].map(([, name]) => name));
    const yaml = [
      'listeners: [{name: http, address: ":80"}]',
      'routes:',
      '  - name: r',
      example.replace(/^/gm, '    '),
      `backends: [${[...backends].map((name) => `{name: ${name}, endpoints: ["10.0.0.1:1"]}`).join(', ')}]`,
    ].join('\n');
    const result = loadConfig(yaml, '/example.yaml', {});
    assert.equal('errors' in result ? result.errors.map(formatConfigError).join('\n') : '', '');
  });
}

test('docs/routing.md says which regular expressions are taken, and how large they may be', () => {
  assert.equal(examples.length, 5);
  assert.ok(page.includes(`more than ${DFA_STATES_MAX} states`) && page.includes(`up to ${REPEAT_MAX}`));
  assert.match(regexProblem('.*a.{20}') ?? '', /too large/);
  const syntax = /\| written \| means \|\n\|---\|---\|\n(.*?)\n\n/s.exec(page)![1]!;
  const patterns = [...syntax.matchAll(/`([^`]+)`/g)].map(([, text]) => text!.replaceAll('\\|', '|'));
  assert.ok(patterns.length > 30);
  for (const pattern of patterns) assert.equal(regexProblem(pattern), undefined, pattern);
});
