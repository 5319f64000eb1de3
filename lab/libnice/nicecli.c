/* An ICE agent as Communicator 2007 R2 has it (libnice in OC2007R2 mode), with one component.
 *
 *   nicecli relay udp|tcp|tls SERVER PORT USER PASSWORD     all its media goes by its relay (USER, PASSWORD: base64)
 *   nicecli host udp|tcp                                    no relay
 *
 * Events on standard output: "ufrag UFRAG PASSWORD", "cand TYPE TRANSPORT IP PORT PRIORITY FOUNDATION", "gathered",
 * "state N", "pair TYPE TRANSPORT TYPE TRANSPORT" (local, remote), "rx COUNT OCTETS" for each packet. Commands on
 * standard input: "remote UFRAG PASSWORD", "cand ...", "check" once all candidates are there, "send COUNT". The types are
 * libnice's: 0 host, 1 server reflexive, 2 peer reflexive, 3 relayed; transports: 0 UDP, 1 TCP active, 2 TCP passive. */
#include <agent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static GMainLoop *loop;
static NiceAgent *agent;
static guint stream, received, sending, sent;
static GSList *candidates;

static void gathered(NiceAgent *a, guint s, gpointer d)
{
	GSList *list = nice_agent_get_local_candidates(a, s, 1), *i;
	gchar *ufrag, *password, ip[64];

	nice_agent_get_local_credentials(a, s, &ufrag, &password);
	printf("ufrag %s %s\n", ufrag, password);
	for (i = list; i; i = i->next) {
		NiceCandidate *c = i->data;
		nice_address_to_string(&c->addr, ip);
		printf("cand %d %d %s %u %u %s\n", c->type, c->transport, ip, nice_address_get_port(&c->addr), c->priority, c->foundation);
	}
	printf("gathered\n");
}

static void changed(NiceAgent *a, guint s, guint component, guint state, gpointer d)
{
	printf("state %u\n", state);
}

static void paired(NiceAgent *a, guint s, guint component, NiceCandidate *local, NiceCandidate *remote, gpointer d)
{
	printf("pair %d %d %d %d\n", local->type, local->transport, remote->type, remote->transport);
}

static void packet(NiceAgent *a, guint s, guint component, guint len, gchar *b, gpointer d)
{
	printf("rx %u %u\n", ++received, len);
}

static gboolean tick(gpointer d)
{
	char b[160];

	memset(b, 'x', sizeof b);
	if (sent >= sending)
		return FALSE;
	if (nice_agent_send(agent, stream, 1, sizeof b, b) > 0)
		sent++;
	return TRUE;
}

static void command(char *line)
{
	char ufrag[300], password[300], ip[64];
	unsigned type, transport, port, priority;

	if (sscanf(line, "remote %299s %299s", ufrag, password) == 2) {
		nice_agent_set_remote_credentials(agent, stream, ufrag, password);
	} else if (sscanf(line, "cand %u %u %63s %u %u %32s", &type, &transport, ip, &port, &priority, ufrag) == 6) {
		NiceCandidate *c = nice_candidate_new(type);
		c->component_id = 1;
		c->stream_id = stream;
		c->transport = transport;
		c->priority = priority;
		g_strlcpy(c->foundation, ufrag, sizeof c->foundation);
		nice_address_set_from_string(&c->addr, ip);
		nice_address_set_port(&c->addr, port);
		candidates = g_slist_append(candidates, c);
	} else if (!strncmp(line, "check", 5)) {
		printf("checking %d\n", nice_agent_set_remote_candidates(agent, stream, 1, candidates));
	} else if (sscanf(line, "send %u", &sending) == 1) {
		sent = 0;
		g_timeout_add(20, tick, NULL);
	}
}

static gboolean input(GIOChannel *io, GIOCondition cond, gpointer d)
{
	gchar *line = NULL;

	if (g_io_channel_read_line(io, &line, NULL, NULL, NULL) != G_IO_STATUS_NORMAL) {
		g_main_loop_quit(loop);
		return FALSE;
	}
	command(line);
	g_free(line);
	return TRUE;
}

int main(int n, char **v)
{
	gboolean relay = n == 7 && !strcmp(v[1], "relay"), udp;

	if (!relay && n != 3)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	udp = !strcmp(v[2], "udp");
	loop = g_main_loop_new(NULL, 0);
	/* On TCP the host must choose: libnice makes no pair of its passive candidate and an active relay, so where
	 * the relay connects to it and the other agent chooses that connection it would wait for ever. */
	agent = nice_agent_new(g_main_loop_get_context(loop), NICE_COMPATIBILITY_OC2007R2);
	g_object_set(agent, "controlling-mode", relay == udp, "upnp", FALSE, "ice-tcp", !udp, "ice-udp", udp, "force-relay", relay, NULL);
	g_signal_connect(agent, "candidate-gathering-done", G_CALLBACK(gathered), NULL);
	g_signal_connect(agent, "component-state-changed", G_CALLBACK(changed), NULL);
	g_signal_connect(agent, "new-selected-pair-full", G_CALLBACK(paired), NULL);
	stream = nice_agent_add_stream(agent, 1);
	if (relay)
		nice_agent_set_relay_info(agent, stream, 1, v[3], atoi(v[4]), v[5], v[6],
			udp ? NICE_RELAY_TYPE_TURN_UDP : !strcmp(v[2], "tcp") ? NICE_RELAY_TYPE_TURN_TCP : NICE_RELAY_TYPE_TURN_TLS);
	nice_agent_attach_recv(agent, stream, 1, g_main_loop_get_context(loop), packet, NULL);
	nice_agent_gather_candidates(agent, stream);
	g_io_add_watch(g_io_channel_unix_new(0), G_IO_IN | G_IO_HUP, input, NULL);
	g_main_loop_run(loop);
	return 0;
}
