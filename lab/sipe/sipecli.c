/*
 * sipecli: pidgin-sipe without a window, for the lab. libpurple and its plugin do everything that
 * is on the wire; this file is the user: it does what a line on stdin says, and prints a line for
 * each thing that happens.
 *
 *   sipecli HOME USER@DOMAIN PASSWORD SERVER:PORT tcp|tls
 *
 *   im URI TEXT        send an instant message            signed-on | signed-off | error N TEXT
 *   send URI FILE      offer a file                        im-recv|im-sent|im-error PEER TEXT
 *   files take|hold|refuse   what to do with offers        xfer EVENT SIZE SENT FILE
 *   take               accept all that are held            notify TEXT
 *   quit               sign off and end
 *
 * Files that are received go to HOME/dl. A connection that is lost is made again after a second,
 * as Pidgin does.
 */
#include <fcntl.h>
#include <glib.h>
#include <purple.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static GMainLoop *loop;
static PurpleAccount *account;
static char *downloads;
static enum { TAKE, HOLD, REFUSE } files = TAKE;
static GSList *held;      /* offers that wait for "take" */
static gboolean asking;   /* the next question is about a file */
static gboolean quitting;

/* say prints one event on one line. */
static void say(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	char *text = g_strdup_vprintf(format, args);
	va_end(args);
	printf("EV %s\n", g_strdelimit(text, "\r\n", ' '));
	fflush(stdout);
	g_free(text);
}

/* The event loop: glib's. */

typedef struct {
	PurpleInputFunction function;
	gpointer data;
} Watch;

static gboolean ready(GIOChannel *channel, GIOCondition condition, gpointer data)
{
	Watch *watch = data;
	PurpleInputCondition what = 0;
	if (condition & (G_IO_IN | G_IO_HUP | G_IO_ERR))
		what |= PURPLE_INPUT_READ;
	if (condition & (G_IO_OUT | G_IO_HUP | G_IO_ERR | G_IO_NVAL))
		what |= PURPLE_INPUT_WRITE;
	watch->function(watch->data, g_io_channel_unix_get_fd(channel), what);
	return TRUE;
}

static guint input_add(int fd, PurpleInputCondition what, PurpleInputFunction function, gpointer data)
{
	GIOCondition condition = 0;
	if (what & PURPLE_INPUT_READ)
		condition |= G_IO_IN | G_IO_HUP | G_IO_ERR;
	if (what & PURPLE_INPUT_WRITE)
		condition |= G_IO_OUT | G_IO_HUP | G_IO_ERR | G_IO_NVAL;
	if (what == PURPLE_INPUT_WRITE) /* a file is sent on it: one blocking write would stop all other transfers */
		fcntl(fd, F_SETFL, fcntl(fd, F_GETFL, 0) | O_NONBLOCK);
	Watch *watch = g_new0(Watch, 1);
	watch->function = function;
	watch->data = data;
	GIOChannel *channel = g_io_channel_unix_new(fd);
	guint id = g_io_add_watch_full(channel, G_PRIORITY_DEFAULT, condition, ready, watch, g_free);
	g_io_channel_unref(channel);
	return id;
}

static PurpleEventLoopUiOps loop_ops = {
	.timeout_add = g_timeout_add,
	.timeout_remove = g_source_remove,
	.input_add = input_add,
	.input_remove = g_source_remove,
	.timeout_add_seconds = g_timeout_add_seconds,
};

/* libpurple's own loses its place when a message ends exactly at the end of the buffer, and then sends
 * the buffer round and round. This one, found before it by the dynamic linker, never wraps. */
void purple_circ_buffer_append(PurpleCircBuffer *buf, gconstpointer data, gsize size)
{
	if (buf->bufused > 0)
		memmove(buf->buffer, buf->outptr, buf->bufused);
	if (buf->buflen <= buf->bufused + size) { /* the end is never reached, so the reader does not wrap either */
		buf->buflen = buf->bufused + size + 1;
		buf->buffer = g_realloc(buf->buffer, buf->buflen);
	}
	memcpy(buf->buffer + buf->bufused, data, size);
	buf->bufused += size;
	buf->outptr = buf->buffer;
	buf->inptr = buf->buffer + buf->bufused;
}

/* Conversations. */

static void write_conv(PurpleConversation *conv, const char *who, const char *alias, const char *text, PurpleMessageFlags flags, time_t when)
{
	const char *kind = flags & PURPLE_MESSAGE_RECV ? "im-recv" : flags & PURPLE_MESSAGE_SEND ? "im-sent" : flags & PURPLE_MESSAGE_ERROR ? "im-error" : "im-other";
	say("%s %s %s", kind, purple_conversation_get_name(conv), text);
}

static PurpleConversationUiOps conversation_ops = { .write_conv = write_conv };

/* Questions. Certificates are accepted, files as "files" says. */

struct answer {
	PurpleRequestActionCb callback;
	void *data;
	int index;
};

static gboolean give_answer(gpointer p)
{
	struct answer *answer = p;
	answer->callback(answer->data, answer->index);
	g_free(answer);
	return FALSE;
}

static void *request_action(const char *title, const char *primary, const char *secondary, int def, PurpleAccount *who_asks,
	const char *who, PurpleConversation *conv, void *data, size_t count, va_list actions)
{
	gboolean file = asking;
	asking = FALSE;
	if (file && files == HOLD)
		return NULL;
	size_t choice = file && files == REFUSE ? 1 : 0; /* Accept, Cancel */
	for (size_t i = 0; i < count; i++) {
		const char *label = va_arg(actions, const char *);
		PurpleRequestActionCb callback = va_arg(actions, PurpleRequestActionCb);
		if (i != choice)
			continue;
		say("answer %s", label);
		if (callback) {
			struct answer *answer = g_new0(struct answer, 1);
			*answer = (struct answer){ callback, data, (int)i };
			g_idle_add(give_answer, answer);
		}
	}
	return NULL;
}

static PurpleRequestUiOps request_ops = { .request_action = request_action };

static void *notify_message(PurpleNotifyMsgType type, const char *title, const char *primary, const char *secondary)
{
	say("notify %s | %s", primary ? primary : "", secondary ? secondary : "");
	return NULL;
}

static PurpleNotifyUiOps notify_ops = { .notify_message = notify_message };

/* Files. */

static void accept_file(PurpleXfer *xfer)
{
	char *base = g_path_get_basename(purple_xfer_get_filename(xfer));
	char *path = g_build_filename(downloads, base, NULL);
	purple_xfer_request_accepted(xfer, path);
	g_free(path);
	g_free(base);
}

static void xfer_event(PurpleXfer *xfer, gpointer name)
{
	say("xfer %s %" G_GSIZE_FORMAT " %" G_GSIZE_FORMAT " %s", (const char *)name, purple_xfer_get_size(xfer), purple_xfer_get_bytes_sent(xfer), purple_xfer_get_filename(xfer));
}

static void xfer_offered(PurpleXfer *xfer, gpointer data)
{
	xfer_event(xfer, "offered");
	if (files == TAKE) {
		accept_file(xfer);
		return;
	}
	asking = TRUE;
	if (files == HOLD) {
		purple_xfer_ref(xfer);
		held = g_slist_append(held, xfer);
	}
}

/* Since 2.14 libpurple leaves it to protocols that read for themselves to say when a file is
 * complete, and sipe 1.25 does not. */
static void update_progress(PurpleXfer *xfer, double percent)
{
	if (purple_xfer_get_type(xfer) == PURPLE_XFER_RECEIVE && !purple_xfer_is_completed(xfer) &&
	    purple_xfer_get_size(xfer) > 0 && purple_xfer_get_bytes_sent(xfer) >= purple_xfer_get_size(xfer))
		purple_xfer_set_completed(xfer, TRUE);
}

/* sipe 1.25 cancels a transfer once more, when the INVITE that offered it was refused, after it is freed. */
static void keep(PurpleXfer *xfer) { purple_xfer_ref(xfer); }

static PurpleXferUiOps xfer_ops = { .new_xfer = keep, .update_progress = update_progress };

/* The connection. */

static void signed_on(PurpleConnection *gc) { say("signed-on"); }

static gboolean reconnect(gpointer data)
{
	purple_account_connect(account);
	return FALSE;
}

static void signed_off(PurpleConnection *gc)
{
	say("signed-off");
	if (!quitting)
		g_timeout_add_seconds(1, reconnect, NULL);
}

static void connection_error(PurpleConnection *gc, PurpleConnectionError code, const char *text)
{
	say("error %d %s", code, text);
}

/* Commands. */

static void send_im(const char *to, const char *text)
{
	PurpleConversation *conv = purple_find_conversation_with_account(PURPLE_CONV_TYPE_IM, to, account);
	if (!conv)
		conv = purple_conversation_new(PURPLE_CONV_TYPE_IM, account, to);
	purple_conv_im_send(PURPLE_CONV_IM(conv), text);
}

static void take_held(void)
{
	for (GSList *l = held; l; l = l->next) {
		accept_file(l->data);
		purple_xfer_unref(l->data);
	}
	g_slist_free(held);
	held = NULL;
}

static void quit(void)
{
	quitting = TRUE;
	purple_account_disconnect(account);
	g_timeout_add(300, (GSourceFunc)g_main_loop_quit, loop); /* time for the sign-off's last message */
}

static void obey(char **word)
{
	const char *name = word[0] ? word[0] : "", *first = word[0] ? word[1] : NULL, *second = first ? word[2] : NULL;
	if (!strcmp(name, "im") && second)
		send_im(first, second);
	else if (!strcmp(name, "send") && second)
		serv_send_file(purple_account_get_connection(account), first, second);
	else if (!strcmp(name, "files") && first)
		files = !strcmp(first, "take") ? TAKE : !strcmp(first, "hold") ? HOLD : REFUSE;
	else if (!strcmp(name, "take"))
		take_held();
	else if (!strcmp(name, "quit"))
		quit();
	else
		say("unknown command %s", name);
}

static gboolean command(GIOChannel *channel, GIOCondition condition, gpointer data)
{
	char *line = NULL;
	gsize end;
	GIOStatus status = g_io_channel_read_line(channel, &line, NULL, &end, NULL);
	if (status == G_IO_STATUS_EOF || status == G_IO_STATUS_ERROR)
		return FALSE;
	if (!line)
		return TRUE;
	line[end] = 0;
	char **word = g_strsplit(line, " ", 3);
	obey(word);
	g_strfreev(word);
	g_free(line);
	return TRUE;
}

static void connect_signals(void)
{
	static int handle;
	static const struct { const char *signal, *name; } xfers[] = {
		{ "file-recv-start", "recv-start" }, { "file-recv-complete", "recv-complete" }, { "file-recv-cancel", "recv-cancel" },
		{ "file-send-start", "send-start" }, { "file-send-complete", "send-complete" }, { "file-send-cancel", "send-cancel" },
	};
	void *connections = purple_connections_get_handle(), *transfers = purple_xfers_get_handle();
	purple_signal_connect(connections, "signed-on", &handle, PURPLE_CALLBACK(signed_on), NULL);
	purple_signal_connect(connections, "signed-off", &handle, PURPLE_CALLBACK(signed_off), NULL);
	purple_signal_connect(connections, "connection-error", &handle, PURPLE_CALLBACK(connection_error), NULL);
	purple_signal_connect(transfers, "file-recv-request", &handle, PURPLE_CALLBACK(xfer_offered), NULL);
	for (size_t i = 0; i < G_N_ELEMENTS(xfers); i++)
		purple_signal_connect(transfers, xfers[i].signal, &handle, PURPLE_CALLBACK(xfer_event), (gpointer)xfers[i].name);
}

static void start_purple(const char *home)
{
	purple_util_set_user_dir(home);
	purple_debug_set_enabled(getenv("SIPECLI_DEBUG") != NULL);
	purple_eventloop_set_ui_ops(&loop_ops);
	purple_plugins_add_search_path("/usr/lib/purple-2");
	purple_conversations_set_ui_ops(&conversation_ops);
	purple_request_set_ui_ops(&request_ops);
	purple_notify_set_ui_ops(&notify_ops);
	if (!purple_core_init("sipecli"))
		exit(1);
	purple_xfers_set_ui_ops(&xfer_ops);
	purple_set_blist(purple_blist_new());
	purple_prefs_load();
	purple_prefs_set_bool("/purple/logging/log_ims", FALSE);
}

int main(int argc, char **argv)
{
	if (argc != 6 && argc != 10) {
		fprintf(stderr, "usage: %s HOME USER@DOMAIN PASSWORD SERVER:PORT tcp|tls [PROXY PORT USER PASSWORD]\n", argv[0]);
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	signal(SIGCHLD, SIG_IGN);
	downloads = g_build_filename(argv[1], "dl", NULL);
	g_mkdir_with_parents(downloads, 0700);
	start_purple(argv[1]);
	loop = g_main_loop_new(NULL, FALSE);
	account = purple_account_new(argv[2], "prpl-sipe");
	purple_account_set_password(account, argv[3]);
	purple_account_set_string(account, "server", argv[4]);
	purple_account_set_string(account, "transport", argv[5]);
	purple_account_set_string(account, "authentication", "ntlm");
	purple_account_set_bool(account, "dont-publish", TRUE);
	if (argc == 10) {
		PurpleProxyInfo *proxy = purple_proxy_info_new();
		purple_proxy_info_set_type(proxy, PURPLE_PROXY_HTTP);
		purple_proxy_info_set_host(proxy, argv[6]);
		purple_proxy_info_set_port(proxy, atoi(argv[7]));
		purple_proxy_info_set_username(proxy, argv[8]);
		purple_proxy_info_set_password(proxy, argv[9]);
		purple_account_set_proxy_info(account, proxy);
	}
	connect_signals();
	purple_accounts_add(account);
	purple_account_set_enabled(account, "sipecli", TRUE);
	purple_savedstatus_activate(purple_savedstatus_new(NULL, PURPLE_STATUS_AVAILABLE));
	GIOChannel *input = g_io_channel_unix_new(0);
	g_io_add_watch(input, G_IO_IN | G_IO_HUP, command, NULL);
	g_main_loop_run(loop);
	purple_core_quit();
	return 0;
}
