// Where the endpoints of the running configuration are: names looked up, files read, both kept fresh.
//
// The configuration says where to look; what is found there is added here, so that everything behind sees
// a configuration whose endpoints are all known. Tells the app when workers have to hear of a change.
// Owned by the control thread.

import type { ResolvedAddress, ResolvedEndpoints } from '../../config/compile.ts';
import type { Config } from '../../config/config.ts';
import type { Log } from '../../core/workers/log.ts';
import { FileWatcher, WATCH_TIMES, type WatchTimes } from '../certificates/watch.ts';
import { lookupBy } from './dns.ts';
import { EndpointFiles, type FileContents } from './files.ts';
import { type AnswersByQuery, EndpointResolver, type Names, type Query, queryKey, queryOf } from './resolver.ts';

/** What changes of endpoints come from. */
export type ChangeSource = 'dns' | 'file';

/** A configuration whose endpoints are known. */
export interface Discovered {
  /** With the endpoints of files. */
  config: Config;
  /** Addresses of its names. */
  resolved: ResolvedEndpoints;
}

/** Finds endpoints. */
export class Discovery {
  private readonly resolver: EndpointResolver;
  private readonly files: EndpointFiles;
  private readonly watcher: FileWatcher;
  private readonly reread: () => void;
  /** What the last `discover` has found; nothing of it counts before its configuration runs. */
  private candidate: { config: Config; contents: FileContents; names: Names } | undefined;

  /** `onChange` is called when a new snapshot is needed; `discover` then gives what is known. */
  constructor(
    log: Log,
    onChange: (source: ChangeSource) => void,
    makeLookup: typeof lookupBy = lookupBy,
    times: WatchTimes = WATCH_TIMES,
  ) {
    this.resolver = new EndpointResolver(log, () => onChange('dns'), makeLookup);
    this.files = new EndpointFiles(log);
    this.reread = () => {
      if (this.files.rereadAll()) onChange('file');
    };
    this.watcher = new FileWatcher(this.reread, times);
  }

  /**
   * Reads the files and looks up the names of a configuration that is to run. Names without an answer have no
   * addresses. Without `adopt` of the same configuration it leaves no trace. Throws an ExitError with one sentence when a file cannot be used.
   */
  async discover(config: Config): Promise<Discovered> {
    this.candidate = undefined;
    const contents = this.files.prepare(config);
    const complete = this.files.complete(config, contents);
    const queries = queriesOf(complete);
    const names = await this.resolver.prepare(queries, config.dns);
    this.candidate = { config, contents, names };
    return discovered(complete, this.resolver.lastAnswers(queries, names));
  }

  /** The same of the running configuration, from what is known; names that are new are looked up. */
  async rediscover(config: Config): Promise<Discovered> {
    const complete = this.files.complete(config);
    const queries = queriesOf(complete);
    await this.resolver.add(queries);
    return discovered(complete, this.resolver.lastAnswers(queries));
  }

  /** The configuration runs: its files and names are watched, others forgotten. */
  adopt(config: Config): void {
    const found = this.candidate?.config === config ? this.candidate : undefined;
    this.candidate = undefined;
    this.watcher.watch(this.files.adopt(config, found?.contents));
    // What has changed before it was watched.
    this.reread();
    this.resolver.adopt(queriesOf(this.files.complete(config)), found?.names);
  }

  /** Stops watching. */
  close(): void {
    this.resolver.close();
    this.watcher.close();
  }
}

/** Distinct names among the endpoints. */
function queriesOf(config: Config): Query[] {
  const queries = new Map<string, Query>();
  for (const endpoint of config.backends.flatMap(({ endpoints }) => endpoints)) {
    const query = queryOf(endpoint);
    if (query !== undefined) queries.set(queryKey(query), query);
  }
  return [...queries.values()];
}

/** The addresses of every endpoint that is a name, by the endpoint's text in the configuration. */
function discovered(config: Config, answers: AnswersByQuery): Discovered {
  const resolved = new Map<string, ResolvedAddress[]>();
  for (const endpoint of config.backends.flatMap(({ endpoints }) => endpoints)) {
    const query = queryOf(endpoint);
    const found = query === undefined ? undefined : answers.get(queryKey(query));
    if (found === undefined) continue;
    const addresses = found.map(({ host, port, weight, priority }) => ({
      host,
      port: port === 0 ? endpoint.port : port,
      weight,
      priority,
    }));
    resolved.set(endpoint.address, addresses);
  }
  return { config, resolved };
}
