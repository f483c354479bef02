// The command line of `npm run bench`.

/** What a benchmark run was asked to do. */
export interface BenchOptions {
  help: boolean;
  quick: boolean;
  /** Scenarios to run; empty: all. */
  only: string[];
  /** Peers to compare with; null: all that are installed. */
  peers: string[] | null;
  rounds: number;
  /** Length of one measured round; need not be whole. */
  seconds: number;
  backend: 'nginx' | 'c';
  /** Where the results are written; null: nowhere (a partial run must not replace the full results). */
  out: string | null;
}

/** A round must be long enough for wrk to connect and report. */
const SECONDS_MIN = 0.2;
const QUICK_SECONDS = 0.6;

/** Text of --help. */
export const USAGE = `Usage: npm run bench -- [options]

  --quick             every scenario with one short round, in about five minutes
  --only A,B          only these scenarios; 'traffic-*' is all that begin so
  --peers A,B         compare with these proxies only (default: all that are installed)
  --rounds N          measured rounds for each proxy (default 5; quick: 1)
  --seconds S         length of a round in seconds (default 4; quick: 0.6)
  --backend nginx|c   upstream server (default nginx; c: backend.c in PORTCULLIS_LIMIT_DIR)
  --out FILE          write the results to FILE; a complete run writes bench/RESULTS.md by itself
  --help              this text
`;

/** A command line that cannot be obeyed; its message is for the user. */
export class UsageError extends Error {}

/** Reads the arguments after `run.ts`; `defaultOut` takes the results of a complete run. */
export function parseOptions(args: readonly string[], defaultOut: string): BenchOptions {
  const options: BenchOptions = {
    help: false,
    quick: false,
    only: [],
    peers: null,
    rounds: 0,
    seconds: 0,
    backend: 'nginx',
    out: null,
  };
  for (let i = 0; i < args.length; i++) {
    const arg = args[i];
    if (arg === '--help' || arg === '-h') options.help = true;
    else if (arg === '--quick') options.quick = true;
    else if (arg === '--only') options.only = list(arg, args[++i]);
    else if (arg === '--peers') options.peers = list(arg, args[++i]);
    else if (arg === '--rounds') options.rounds = positive(arg, args[++i]);
    else if (arg === '--seconds') options.seconds = duration(arg, args[++i]);
    else if (arg === '--backend') options.backend = backend(args[++i]);
    else if (arg === '--out') options.out = value(arg, args[++i]);
    else throw new UsageError(`unknown option ${arg}; try --help`);
  }
  if (options.rounds === 0) options.rounds = options.quick ? 1 : 5;
  if (options.seconds === 0) options.seconds = options.quick ? QUICK_SECONDS : 4;
  const complete = !options.quick && options.only.length === 0 && options.peers === null;
  if (complete && options.out === null) options.out = defaultOut;
  return options;
}

function value(option: string, text: string | undefined): string {
  if (text === undefined || text === '') throw new UsageError(`${option} needs a value`);
  return text;
}

function list(option: string, text: string | undefined): string[] {
  return value(option, text).split(',').filter(Boolean);
}

function positive(option: string, text: string | undefined): number {
  const number = Number(value(option, text));
  if (!Number.isInteger(number) || number < 1) throw new UsageError(`${option} needs a whole number of 1 or more`);
  return number;
}

function duration(option: string, text: string | undefined): number {
  const seconds = Number(value(option, text));
  if (!(seconds >= SECONDS_MIN && seconds < 3600))
    throw new UsageError(`${option} needs a number of ${SECONDS_MIN} or more`);
  return seconds;
}

function backend(text: string | undefined): 'nginx' | 'c' {
  if (text === 'nginx' || text === 'c') return text;
  throw new UsageError('--backend is nginx or c');
}
