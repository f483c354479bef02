// Access log templates: which are accepted, and what the errors say.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  accessLogFields,
  compileAccessLogFormat,
  LogField,
  validateAccessLogTemplate,
} from '../../../../core/telemetry/access-log-format.ts';

const accepted = [
  'json',
  'common',
  '%{method} %{path}',
  '100%% %{status}',
  'tab\t%{status}',
  'é %{route}',
  ...accessLogFields.map((field) => `%{${field}}`),
];

for (const template of accepted) {
  test(`accepts the format ${JSON.stringify(template)}`, () => {
    assert.equal(validateAccessLogTemplate(template), undefined);
    assert.ok(compileAccessLogFormat(template).fields.length > 0);
  });
}

const refused: [template: string, sentence: RegExp][] = [
  ['', /expected json, common, or a template/],
  ['jsno', /expected json, common, or a template with at least one %\{field\}/],
  ['%{metod}', /unknown access log field %\{metod\}; did you mean %\{method\}\?/],
  ['%{bytes_sent}', /did you mean %\{bytesSent\}\?/],
  ['%{commonTime}', /unknown access log field %\{commonTime\}/],
  ['%{somethingElse}', /known fields: time, method, .*policy$/],
  ['%{}', /unknown access log field %\{\}/],
  ['%{method', /"%\{method" is not closed by "\}"/],
  ['%d %{method}', /a percent sign itself %%/],
  ['%{method} 100%', /a percent sign itself %%/],
  ['%{method}\n', /may not contain line breaks/],
];

for (const [template, sentence] of refused) {
  test(`refuses the format ${JSON.stringify(template)} with a sentence`, () => {
    assert.match(validateAccessLogTemplate(template) ?? 'accepted', sentence);
    assert.throws(() => compileAccessLogFormat(template), sentence);
  });
}

test('field numbers are the positions of the field names', () => {
  const names = Object.entries(LogField).filter(([, number]) => number < accessLogFields.length);
  assert.equal(names.length, accessLogFields.length);
  for (const [name, number] of names) {
    assert.equal(accessLogFields[number].toUpperCase(), name.replaceAll('_', ''));
  }
});

test('a template keeps its text around and between fields, and ends the line', () => {
  const { literals, fields, json } = compileAccessLogFormat('<%{status}%%%{worker}>');
  assert.deepEqual(
    literals.map(({ length }) => length),
    [1, 1, 2],
  );
  assert.deepEqual([...fields], [LogField.STATUS, LogField.WORKER]);
  assert.equal(json, false);
});
