/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Everything that exists once a family. Included twice, with FAMILY defined as
 * 4 and as 6 (decision 0002); F(name) is name4 or name6. The files below have no
 * include guards for that reason and are included from here alone.
 */
#undef F
#undef addr_t

#undef net_key_t
#undef ct_key_t
#undef frag_key_t
#undef nat_key_t
#undef svc_key_t
#undef src_key_t
#undef lbct_key_t
#undef NAT_FAMILY
#undef NAT_SERVICES
#undef OWNER
#undef LBCT_ADDR
#undef SELF_ADDR

#if FAMILY == 4
#define F(name) name##4
#define addr_t __u32
#define net_key_t struct weft_net4_key
#define ct_key_t struct weft_ct4_key
#define frag_key_t struct weft_frag4_key
#define nat_key_t struct weft_nat4_key
#define svc_key_t struct weft_svc4_key
#define src_key_t struct weft_src4_key
#define lbct_key_t struct weft_lbct4_key
#define NAT_FAMILY NAT_IPV4
#define NAT_SERVICES NAT_SERVICES4
#else
#define F(name) name##6
#define addr_t struct v6addr
#define net_key_t struct weft_net6_key
#define ct_key_t struct weft_ct6_key
#define frag_key_t struct weft_frag6_key
#define nat_key_t struct weft_nat6_key
#define svc_key_t struct weft_svc6_key
#define src_key_t struct weft_src6_key
#define lbct_key_t struct weft_lbct6_key
#define NAT_FAMILY NAT_IPV6
#define NAT_SERVICES NAT_SERVICES6
#endif

#include "addr.h"
#include "parse.h"
#include "ct.h"
#include "finish.h"
#include "hop.h"
#include "toobig.h"
#include "forward.h"
#include "express.h"
#include "nat_rewrite.h"
#include "lbct_ip.h"
#include "nat_ip.h"
#include "svc_ip.h"
#if FAMILY == 6
#include "jumbo.h"
#include "nd.h"
#endif
#include "../service_ip.h"
#include "../pod_ip.h"
#include "../host_ip.h"
#include "../overlay_ip.h"
