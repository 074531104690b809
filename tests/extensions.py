"""Matches and targets of all sorts, as far as this kernel and this iptables know them."""

from __future__ import annotations

from tests.namespace import Namespace, restore_input

COMMENT = "-m comment --comment hypeman-x-hmdead"
"""As a whole one of the forms that make a rule ours."""

EXTENSIONS = [
    "-p tcp -m tcp --dport 22 -j ACCEPT",
    "-p tcp -m tcp ! --sport 1024:65535 ! --tcp-flags SYN,RST,ACK SYN --tcp-option 8 -j DROP",
    "-p tcp -m tcp --tcp-flags SYN,RST SYN -m tcpmss --mss 1400:1536 -j DROP",
    "-p udp -m udp --dport 53:54 ! --sport 53 -j DROP",
    "-p icmp -m icmp --icmp-type 8/0 -j ACCEPT",
    "! -p tcp -j DROP",
    "-s 10.200.0.0/255.255.0.255 ! -d 192.0.2.0/24 -j DROP",
    "-f -j DROP",
    "-m conntrack ! --ctstate INVALID,UNTRACKED --ctorigsrc 10.200.0.0/16 --ctproto 6 -j ACCEPT",
    "-m state --state NEW -j ACCEPT",
    "-m mark ! --mark 0x1/0xff -j DROP",
    "-m connmark --mark 0x20/0xf0 -j DROP",
    "-m limit --limit 3/min --limit-burst 7 -j ACCEPT",
    "-m hashlimit --hashlimit-above 9/sec --hashlimit-burst 20 --hashlimit-mode srcip --hashlimit-name hl1 -j DROP",
    "-m hashlimit --hashlimit-upto 1mb/s --hashlimit-mode srcip --hashlimit-srcmask 24 --hashlimit-name hl2 -j ACCEPT",
    "-m recent --update --seconds 60 --hitcount 4 --name ssh --mask 255.255.255.255 --rsource -j DROP",
    "-m recent --set --name ssh --mask 255.255.255.0 --rdest",
    "-m statistic --mode nth --every 3 --packet 1 -j DROP",
    "-m statistic --mode random --probability 0.25000000000 -j DROP",
    "-m quota --quota 123456789 -j ACCEPT",
    "-p tcp -m multiport --dports 22,80,1000:2000 -j ACCEPT",
    "-p udp -m multiport ! --ports 53,123 -j DROP",
    "-m set --match-set blocked src -j DROP",
    "-m set ! --match-set blocked dst,src --return-nomatch ! --update-counters -j DROP",
    "-m mac --mac-source 02:00:00:00:00:01 -j ACCEPT",
    "-m iprange --src-range 10.200.1.5-10.200.1.77 ! --dst-range 1.1.1.1-1.1.1.9 -j DROP",
    "-m length --length 64:1500 -j ACCEPT",
    "-m ttl --ttl-gt 64 -j DROP",
    "-m tos --tos 0x10/0x3f -j ACCEPT",
    "-m dscp --dscp 0x2e -j ACCEPT",
    "-m ecn --ecn-ip-ect 1 -j DROP",
    "-m addrtype --src-type LOCAL --limit-iface-in ! --dst-type BROADCAST -j DROP",
    "-m pkttype --pkt-type multicast -j DROP",
    "-m physdev --physdev-in hm1 --physdev-is-bridged -j DROP",
    "-m helper --helper ftp -j ACCEPT",
    "-p tcp -m connlimit --connlimit-above 8 --connlimit-mask 24 --connlimit-saddr -j REJECT",
    "-m connbytes --connbytes 1000:20000 --connbytes-mode bytes --connbytes-dir both -j DROP",
    "-m time --timestart 01:00:00 --timestop 02:30:00 --weekdays Mon,Fri -j DROP",
    '-m string --string "GET /|odd" --algo kmp --to 65535 -j DROP',
    '-m u32 --u32 "0x6&0xff=0x6&&0x4&0x1fff=0x0" -j DROP',
    '-m bpf --bytecode "4,48 0 0 9,21 0 1 6,6 0 0 1,6 0 0 0" -j DROP',
    "-m socket --transparent -j DROP",
    "-m rpfilter --loose -j DROP",
    "-i hmdead -m comment --comment first -m limit --limit 1/hour -j ACCEPT",
    "-j REJECT --reject-with icmp-admin-prohibited",
    "-p tcp -j REJECT --reject-with tcp-reset",
    '-j LOG --log-prefix "swept: \\"x\\" " --log-level 5 --log-tcp-options --log-ip-options --log-uid',
    "-j NFLOG --nflog-group 7 --nflog-prefix p",
    "-p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu",
    "-j MARK --set-xmark 0x7/0xff",
    "-j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xf0",
    "-j CLASSIFY --set-class 1:10",
    "-j SET --add-set blocked src --exist --timeout 60",
    "-j NFQUEUE --queue-num 4 --queue-bypass",
    "-j RETURN",
    "-j DROP",
    "-j USERS",
    "-g USERS",
    "",
]
"""What stands in rules; the least a kernel has to know of it is tested for."""

IPV6 = [
    "-p ipv6-icmp -m icmp6 --icmpv6-type 128 -j ACCEPT",
    "! -s fd00:1::/64 -d 2001:db8::1/128 -j DROP",
    "-m hl --hl-gt 64 -j DROP",
    "-m rt --rt-type 0 -j DROP",
    "-m frag --fragid 7:9 --fragfirst -j DROP",
    "-m ipv6header --header dst,esp --soft -j DROP",
    "-m ah --ahspi 500 -j DROP",
    "-m eui64 -j DROP",
    "-j REJECT --reject-with icmp6-port-unreachable",
]
"""What only rules of IPv6 hold."""

NAT = [
    "-s 10.200.1.0/24 ! -o eth0 -j MASQUERADE --random",
    "-p tcp -j MASQUERADE --to-ports 1024-2048",
    "-s 10.200.2.0/24 -j SNAT --to-source 192.0.2.1-192.0.2.9 --persistent",
    "-p udp -j SNAT --to-source 192.0.2.1:1000-1010",
    "-m set --match-set blocked dst -j ACCEPT",
    "-j NETMAP --to 192.0.2.0/24",
    "-j RETURN",
]


REMARKS = [
    "x" * 255,
    "x" * 248 + "-hmdead",
    "é" * 127 + "x",
    "€" * 85,
    "\udcff" * 255,
    "\udcc3-hmdead",
    "\udced\udca0\udc80",
    "\ufeffhm1",
    'quotes " \' ` \\" and -hmdead',
    "ends with a backslash \\",
    "new\nline\r\n\ttab\n",
    "\x1b[31m\x07\x7f\x01",
    " spaces around ",
    "-j DROP --comment x",
    "%s %n %0A",
    "",
]
"""Comments that are hard to read right: the longest, those that are no text, those that look like something else."""

UNREADABLE = ("-m set ", "-j SET ", "-m bpf ", "-m devgroup ")
"""What may hold interfaces that a rule's text does not tell, so that a comment alone is no tie beside it."""


def is_readable(body: str) -> bool:
    """Whether the text of a rule with this body tells all that it has to do with interfaces."""
    return not body.startswith(UNREADABLE)


def orphan(chain: str, body: str) -> str:
    """A rule for ``chain`` with this body, tied to a bridge that is gone: by its comment where that is enough."""
    match = "" if is_readable(body) else "-o hmdead " if chain == "POSTROUTING" else "-i hmdead "
    return f"-A {chain} {match}{COMMENT} {body}".rstrip()


def accepted(ns: Namespace, flavour: str, table: str, chain: str, bodies: list[str], family: str = "ipv4") -> list[str]:
    """The orphans for ``chain``, with one of ``bodies`` each, that this kernel and this iptables know."""
    known = []
    for body in bodies:
        rule = orphan(chain, body)
        text = restore_input({table: [":USERS - [0:0]", "-F", rule]})
        if ns.restore(flavour, text, family, check=False).returncode == 0:
            known.append(rule)
    return known
