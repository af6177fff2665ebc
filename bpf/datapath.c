// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* One object holds all programs, so that they share their maps. */
#include "lib/maps.h"

/* Capabilities, fixed when the programs are loaded (DATAPATH rule 13). */
const volatile bool enable_ipv4 = true;
const volatile bool enable_ipv6 = true;
const volatile __u32 express_mark = 0; /* or'ed to the actions of lib/express.h: tests tell by it who acted */
const volatile __u32 fib_flags = 0; /* BPF_FIB_LOOKUP_SKIP_NEIGH where the kernel has it */

#include "lib/arp.h"
#include "lib/crc32c.h"
#include "lib/encap.h"
#include "lib/endpoint.h"
#include "lib/lb.h"
#include "lib/lbct.h"
#include "lib/nat.h"
#include "lib/packet.h"
#include "lib/report.h"
#include "lib/time.h"

#define FAMILY 4
#include "lib/family.h"
#undef FAMILY
#define FAMILY 6
#include "lib/family.h"

#include "pod.c"
#include "host.c"
#include "overlay.c"
#include "sock.c"

char _license[] SEC("license") = "Dual BSD/GPL";
