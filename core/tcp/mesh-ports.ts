// The ports of a node proxy in the network namespaces of workloads: those of Istio ambient.

/** By what is taken there: captured connections that leave, those that come in plain text, and tunnels (HBONE). */
export const MeshPort = { OUTBOUND: 15_001, INBOUND: 15_006, TUNNELS: 15_008 } as const;
