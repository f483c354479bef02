// Metrics of the process itself, under the names that all Prometheus clients use.
//
// prom-client's default set is not used: its event loop monitor wakes the process a hundred times a
// second, and an idle gateway should sleep.
// Runs on the control thread, at scrape time. Source: proc(5).

import { readdirSync, readFileSync } from 'node:fs';
import type { MetricDefinition } from './exposition.ts';

const startSeconds = Math.round((performance.timeOrigin / 1000) * 1000) / 1000;

/** Process metrics; those that the system does not tell have no values. */
export const processMetrics: readonly MetricDefinition<unknown>[] = [
  one(
    'process_cpu_user_seconds_total',
    'counter',
    'User CPU time of all threads.',
    () => process.cpuUsage().user / 1e6,
  ),
  one(
    'process_cpu_system_seconds_total',
    'counter',
    'System CPU time of all threads.',
    () => process.cpuUsage().system / 1e6,
  ),
  one('process_start_time_seconds', 'gauge', 'When the process started, in seconds since 1970.', () => startSeconds),
  one('process_resident_memory_bytes', 'gauge', 'Resident memory.', () => process.memoryUsage.rss()),
  one('process_open_fds', 'gauge', 'Open file descriptors.', () => readdirSync('/proc/self/fd').length),
  one('process_max_fds', 'gauge', 'Limit of open file descriptors.', maxDescriptors),
];

function one(name: string, type: 'counter' | 'gauge', help: string, read: () => number): MetricDefinition<unknown> {
  return {
    name,
    type,
    help,
    labels: [],
    collect: () => {
      try {
        return [{ labels: {}, value: read() }];
      } catch {
        return [];
      }
    },
  };
}

function maxDescriptors(): number {
  const limits = readFileSync('/proc/self/limits', 'utf8');
  const soft = /^Max open files\s+(\S+)/m.exec(limits)?.[1];
  return soft === 'unlimited' ? Number.POSITIVE_INFINITY : Number(soft);
}
