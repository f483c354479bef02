// Metrics of overload protection. Runs on the control thread.

import type { MetricDefinition } from './metrics.ts';

/** Metrics of overload protection. */
export const overloadMetrics: readonly MetricDefinition[] = [
  {
    name: 'portcullis_overload_level',
    type: 'gauge',
    help: '0: none; 1: new connections wait; 2: requests of priority low are refused; 3: those of priority default too.',
    labels: [],
    collect: ({ state: { overload } }) => (overload === null ? [] : [{ labels: {}, value: overload.level }]),
  },
  {
    name: 'portcullis_overload_pressure',
    type: 'gauge',
    help: 'How near a trigger of overload is: 1 is its threshold, 2 and 3 are the levels beyond. Only triggers that are watched.',
    labels: ['trigger'],
    collect: ({ state: { overload } }) =>
      [...(overload?.pressures ?? [])].map(([trigger, value]) => ({ labels: { trigger }, value })),
  },
  {
    name: 'portcullis_overload_shed_requests_total',
    type: 'counter',
    help: 'Requests refused because of overload, by the priority of their rule.',
    labels: ['priority'],
    collect: ({ state: { overload } }) =>
      overload === null
        ? []
        : [
            { labels: { priority: 'low' }, value: overload.shedLow },
            { labels: { priority: 'default' }, value: overload.shedOthers },
          ],
  },
];
