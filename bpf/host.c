// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Programs of the devices of the node. */

SEC("tcx/ingress")
int from_net(struct __sk_buff *skb)
{
	return TCX_NEXT;
}

SEC("tcx/egress")
int to_net(struct __sk_buff *skb)
{
	return TCX_NEXT;
}
