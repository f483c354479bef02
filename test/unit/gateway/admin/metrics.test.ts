// /metrics: a valid exposition whose numbers are those in shared memory.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Reason } from '../../../../core/exchange/reasons.ts';
import { CloseCause, Counter } from '../../../../core/telemetry/metrics.ts';
import { MetricsPage, metricDefinitions } from '../../../../gateway/admin/metrics.ts';
import { fakeState, startAdmin, writers } from './support.ts';

interface Exposition {
  types: Map<string, string>;
  /** Value by series, such as `name{label="x"}`. */
  values: Map<string, number>;
}

/** Parses the text format strictly: every line must be a HELP, a TYPE, a sample of the last TYPE, or empty. */
function parse(text: string): Exposition {
  assert.ok(text.endsWith('\n'));
  const types = new Map<string, string>();
  const values = new Map<string, number>();
  let current = '';
  for (const line of text.split('\n')) {
    if (line === '') continue;
    const type = /^# TYPE ([a-z0-9_]+) (counter|gauge|histogram)$/.exec(line);
    if (type !== null) {
      current = type[1];
      assert.ok(!types.has(current), `${current} twice`);
      types.set(current, type[2]);
      continue;
    }
    if (/^# HELP [a-z0-9_]+ \S.*$/.test(line)) continue;
    const sample = /^([a-z0-9_]+)(\{(?:[a-z_]+="[^"\\\n]*",?)*\})? (\S+)$/.exec(line);
    assert.ok(sample, `not a sample: ${line}`);
    const [, name, labels = '', value] = sample;
    const base = types.get(current) === 'histogram' ? name.replace(/_(bucket|sum|count)$/, '') : name;
    assert.equal(base, current, line);
    assert.ok(!values.has(name + labels), `${name}${labels} twice`);
    const number = value === '+Inf' ? Number.POSITIVE_INFINITY : Number(value);
    assert.ok(!Number.isNaN(number), line);
    values.set(name + labels, number);
  }
  return { types, values };
}

async function scrape(state = fakeState()): Promise<Exposition> {
  return parse(await new MetricsPage(state).render());
}

test('the page is served with the content type of the format', async (t) => {
  const { ask } = await startAdmin(t, fakeState());
  const answer = await ask('/metrics');
  assert.equal(answer.status, 200);
  assert.equal(answer.headers['content-type'], 'text/plain; version=0.0.4; charset=utf-8');
  assert.ok(parse(answer.body).values.size > 50);
});

test('every definition is on the page under its type, named by the conventions', async () => {
  const { types } = await scrape();
  assert.deepEqual(
    [...types],
    metricDefinitions.map(({ name, type }) => [name, type]),
  );
  for (const { name, type } of metricDefinitions) {
    assert.match(name, /^(portcullis|process)_/);
    assert.equal(name.endsWith('_total'), type === 'counter', name);
    assert.doesNotMatch(name, /_ms\b|millis/);
  }
});

test('counters of all workers are summed, and a scrape does not change them', async () => {
  const state = fakeState();
  const [first, second] = writers(state).metrics;
  for (let i = 0; i < 3; i++) first.countOutcome(200, 0);
  second.countOutcome(200, 0);
  second.countOutcome(502, Reason.UPSTREAM_CONNECT_FAILURE);
  first.counters[Counter.DOWNSTREAM_OPEN] = 2;
  second.counters[Counter.DOWNSTREAM_OPEN] = 5;
  first.counters[Counter.DOWNSTREAM_BYTES_IN] = 1e15;
  second.countClose(CloseCause.IDLE_TIMEOUT);
  second.countParseError(16);
  second.counters[Counter.LOOP_BUSY_MS] = 1500;
  const page = new MetricsPage(state);
  for (let round = 0; round < 2; round++) {
    const { values } = parse(await page.render());
    assert.equal(values.get('portcullis_requests_total{status_class="2xx"}'), 4);
    assert.equal(values.get('portcullis_requests_total{status_class="5xx"}'), 1);
    assert.equal(values.get('portcullis_request_failures_total{reason="UF"}'), 1);
    assert.equal(values.get('portcullis_request_failures_total{reason="NR"}'), 0);
    assert.equal(values.get('portcullis_downstream_connections_open'), 7);
    assert.equal(values.get('portcullis_downstream_bytes_total{direction="in"}'), 1e15);
    assert.equal(values.get('portcullis_downstream_connections_closed_total{cause="idle_timeout"}'), 1);
    assert.equal(values.get('portcullis_request_parse_errors_total{error="bare_lf"}'), 1);
    assert.equal(values.get('portcullis_worker_busy_seconds_total{worker="1"}'), 1.5);
  }
});

test('histograms are in seconds, cumulative, and agree with their count and sum', async () => {
  const state = fakeState();
  const { metrics } = writers(state);
  metrics[0].recordLatency(0.05);
  metrics[0].recordLatency(3);
  metrics[1].recordLatency(3);
  metrics[1].recordLatency(90_000);
  const { values } = await scrape(state);
  const name = 'portcullis_request_duration_seconds';
  assert.equal(values.get(`${name}_bucket{le="0.0001"}`), 1);
  assert.equal(values.get(`${name}_bucket{le="0.0025"}`), 1);
  assert.equal(values.get(`${name}_bucket{le="0.005"}`), 3);
  assert.equal(values.get(`${name}_bucket{le="60"}`), 3);
  assert.equal(values.get(`${name}_bucket{le="+Inf"}`), 4);
  assert.equal(values.get(`${name}_count`), 4);
  assert.ok(Math.abs(values.get(`${name}_sum`)! - 90.00605) < 1e-9);
  const buckets = [...values].filter(([series]) => series.startsWith(`${name}_bucket`)).map(([, value]) => value);
  assert.deepEqual(
    buckets,
    buckets.toSorted((a, b) => a - b),
  );
});

test('the state of configuration and workers is shown', async () => {
  const state = fakeState();
  state.workers[1].up = false;
  const { values } = await scrape(state);
  assert.equal(values.get(`portcullis_build_info{version="1.2.3",node="${process.version}"}`), 1);
  assert.equal(values.get('portcullis_config_epoch'), 3);
  assert.equal(values.get('portcullis_config_reloads_total{result="applied"}'), 3);
  assert.equal(values.get('portcullis_config_reloads_total{result="refused"}'), 1);
  assert.equal(values.get('portcullis_worker_up{worker="0"}'), 1);
  assert.equal(values.get('portcullis_worker_up{worker="1"}'), 0);
  assert.equal(values.get('portcullis_worker_restarts_total{worker="1"}'), 1);
  assert.equal(values.get('portcullis_draining'), 0);
});

test('process metrics are those of this process', async () => {
  const { values } = await scrape();
  assert.ok(values.get('process_resident_memory_bytes')! > 10e6);
  assert.ok(values.get('process_cpu_user_seconds_total')! > 0);
  assert.ok(values.get('process_open_fds')! > 2);
  assert.ok(values.get('process_max_fds')! >= values.get('process_open_fds')!);
  assert.ok(Math.abs(values.get('process_start_time_seconds')! - performance.timeOrigin / 1000) < 1);
});
