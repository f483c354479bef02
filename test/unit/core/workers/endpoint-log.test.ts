// One line when an endpoint begins to fail on the node, one when it works again.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DETAIL_TLS, Detail } from '../../../../core/exchange/reasons.ts';
import { Errno } from '../../../../core/ffi/errno.ts';
import { TlsFailure } from '../../../../core/tls/errors.ts';
import { EndpointLog } from '../../../../core/workers/endpoint-log.ts';
import type { EndpointReport } from '../../../../core/workers/protocol.ts';

const address = '10.0.0.1:9001';
const refused = { address, backend: 'shop', detail: Detail.CONNECT_ERRNO, errno: Errno.ECONNREFUSED };
const works = { address, backend: 'shop', detail: Detail.NONE, errno: 0 };

/** What is logged for reports at given times. */
function logOf(reports: [seconds: number, report: EndpointReport][]): string[] {
  const lines: string[] = [];
  let nowMs = 0;
  const log = new EndpointLog(
    (level, message, fields) => lines.push([nowMs / 1000, level, message, ...Object.values(fields ?? {})].join(' ')),
    () => nowMs,
  );
  for (const [seconds, report] of reports) {
    nowMs = seconds * 1000;
    log.note(report);
  }
  return lines;
}

const fails = 'warn endpoint fails 10.0.0.1:9001 shop connection refused (ECONNREFUSED)';
const again = 'info endpoint works again 10.0.0.1:9001 shop';

test('reports of several workers make one line, until one of them says that it works again', () => {
  assert.deepEqual(
    logOf([
      [1, refused],
      [2, refused],
      [12, refused],
      [13, works],
      [14, works],
    ]),
    [`1 ${fails}`, `13 ${again}`],
  );
});

test('an endpoint that comes and goes is logged at most every ten seconds', () => {
  assert.deepEqual(
    logOf([
      [1, refused],
      [2, works],
      [3, refused],
      [4, works],
      [11, refused],
    ]),
    [`1 ${fails}`, `2 ${again}`, `11 ${fails}`],
  );
});

test('a failure that nobody reported for a minute is a new one, and its recovery is not said twice', () => {
  assert.deepEqual(
    logOf([
      [1, refused],
      [61, refused],
      [121, works],
    ]),
    [`1 ${fails}`, `61 ${fails}`],
  );
});

test('endpoints are told apart, and a timer is a cause like any other', () => {
  const silent = { ...refused, address: '[::1]:80', detail: Detail.CONNECT_TIMER, errno: 0 };
  assert.deepEqual(
    logOf([
      [1, refused],
      [1, silent],
      [2, { ...works, address: '[::1]:80' }],
    ]),
    [
      `1 ${fails}`,
      "1 warn endpoint fails [::1]:80 shop no answer within the backend's connectTimeout",
      '2 info endpoint works again [::1]:80 shop',
    ],
  );
});

test('what is wrong with a tunnel is named', () => {
  const lines = logOf([
    [1, { ...refused, detail: Detail.TUNNEL_REFUSED, errno: 0 }],
    [2, { ...refused, address: '10.0.0.2:80', detail: DETAIL_TLS + TlsFailure.UNKNOWN_CA, errno: 0 }],
    [3, { ...refused, address: '10.0.0.3:80', detail: Detail.NO_CERTIFICATE, errno: 0 }],
  ]);
  assert.match(lines[0]!, /refused the connection through it: its answer to CONNECT was not 2xx/);
  assert.match(lines[1]!, /TLS: no trusted authority signed/);
  assert.match(lines[2]!, /no valid certificate of its own/);
});
