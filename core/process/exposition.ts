// Metrics in Prometheus' text format, from values that are counted elsewhere.
//
// prom-client keeps the registry and writes the format; values are read when a scrape comes. Control threads.
// Spec: Prometheus text format 0.0.4.

import { type Metric, Registry } from 'prom-client';

/** One line of the exposition. */
export interface Sample {
  labels: Record<string, string>;
  value: number;
  /** Only where it differs from the metric's: the parts of a histogram. */
  metricName?: string;
}

/** One metric: what it is called, and how it gets its values from what a scrape sees. */
export interface MetricDefinition<Scrape> {
  name: string;
  type: 'counter' | 'gauge' | 'histogram';
  help: string;
  /** Names of its labels, for the documentation. */
  labels: readonly string[];
  collect(scrape: Scrape): Sample[];
}

/** A registry of metrics that read from `scrape`. */
export function registryOf<Scrape>(definitions: readonly MetricDefinition<Scrape>[], scrape: Scrape): Registry {
  const registry = new Registry();
  for (const definition of definitions) {
    // The registry asks a metric for its name and, at scrape time, its values; the library's own
    // classes only count upwards from zero, and cannot show numbers that were counted elsewhere.
    const metric = {
      name: definition.name,
      get: async () => ({
        name: definition.name,
        help: definition.help,
        type: definition.type,
        values: definition.collect(scrape),
      }),
    };
    registry.registerMetric(metric as unknown as Metric);
  }
  return registry;
}
