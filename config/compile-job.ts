// Piscina job: compiles a route table away from the control thread, which stays responsive.
// Input and output are cloned or shared, see compile-routes.ts.

import { compileRouteTable, type RouteTableInput } from './compile-routes.ts';

/** Entry point of the job. */
export default function compileJob(input: RouteTableInput): SharedArrayBuffer {
  return compileRouteTable(input);
}
