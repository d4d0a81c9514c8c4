package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/cmd/credstream/settings"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service/admin"
)

var errCommandFile = fault.New(fault.Invalid, "command_file_invalid", "The file must contain the command's members as one JSON object.")

func (a *invocation) queueCommand() *cobra.Command {
	return a.group("queue", "Enqueue commands and manage the dead-letter queue",
		a.queueList(), a.queueShow(),
		a.queueChange("retry", "Put a message, or all messages, back into their queue", "Message %s is back in its queue.", (*client.API).RetryQueued,
			"%d messages are back in their queues. %d have no stored content and cannot be retried.", (*client.API).RetryAllQueued),
		a.queueChange("drop", "Erase a message, or all messages", "Dropped message %s.", (*client.API).DropQueued,
			"Dropped %d messages.", (*client.API).DropAllQueued),
		a.queueSend())
}

func (a *invocation) queueList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the dead-letter queue: flow events and commands that failed permanently, oldest first", Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			list := client.QueuedList{Messages: []client.DeadLetter{}}
			for m, err := range api.Queued(cmd.Context()) {
				if err != nil {
					return err
				}
				list.Messages = append(list.Messages, m)
			}
			if a.client.JSON {
				return a.json(list)
			}
			var rows [][]string
			for _, m := range list.Messages {
				rows = append(rows, []string{m.ID, when(m.At), m.Queue, m.Name, m.Actor, m.Code, m.Reason})
			}
			return a.list([]string{"ID", "TIME", "QUEUE", "NAME", "ACTOR", "CODE", "REASON"}, rows)
		},
	}
}

func (a *invocation) queueShow() *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show a message of the dead-letter queue", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			m, err := api.GetQueued(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.client.JSON {
				return a.json(m)
			}
			kept := "yes: it can be retried"
			if !m.Kept {
				kept = "no: it could not be parsed"
			}
			pairs := [][2]string{
				{"id", m.ID},
				{"queue", m.Queue},
				{"name", m.Name},
				{"subject", m.Subject},
				{"command", m.CommandID},
				{"event", m.EventID},
				{"actor", m.Actor},
				{"time", when(m.At)},
				{"code", m.Code},
				{"reason", m.Reason},
				{"size", strconv.Itoa(m.Size)},
				{"sha256", m.SHA256},
				{"kept", kept},
			}
			if len(m.Details) > 0 {
				pairs = append(pairs, [2]string{"details", compact(m.Details)})
			}
			if len(m.Content) > 0 {
				pairs = append(pairs, [2]string{"content", compact(m.Content)})
			}
			return a.pairs(nonEmpty(pairs))
		},
	}
}

// queueVerb is a command that takes only the id of a message.
type queueVerb = func(a *client.API, ctx context.Context, id string, opts ...client.CommandOption) (client.Done, error)

// queueBulk is a command on many messages.
type queueBulk = func(a *client.API, ctx context.Context, which client.QueueBulk) (client.QueueChanged, error)

func (a *invocation) queueChange(verb, short, sentence string, change queueVerb, sentenceAll string, changeAll queueBulk) *cobra.Command {
	var all bool
	var which client.QueueBulk
	cmd := &cobra.Command{
		Use: verb + " ID | --all", Short: short,
		Args: func(cmd *cobra.Command, args []string) error {
			if all {
				return arguments()(cmd, args)
			}
			return arguments("ID")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			if all {
				done, err := changeAll(&api.API, cmd.Context(), which)
				if err != nil {
					return err
				}
				numbers := []any{done.Done, done.Skipped}
				return a.answer(done, sentenceAll, numbers[:strings.Count(sentenceAll, "%d")]...)
			}
			done, err := change(&api.API, cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.answer(done, sentence, done.ID)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "all messages of the tenant, or those that match --queue and --code")
	cmd.Flags().StringVar(&which.Queue, "queue", "", "with --all: only messages of this `QUEUE`, flows or commands")
	cmd.Flags().StringVar(&which.Code, "code", "", "with --all: only messages with this error `CODE`")
	return cmd
}

func (a *invocation) queueSend() *cobra.Command {
	var cfg natsConfig
	var file, keysFile, commandID string
	cmd := &cobra.Command{
		Use: "send COMMAND --file FILE", Short: "Enqueue a command over NATS",
		Long: "Enqueue a command over NATS. When this returns, the command is durable; it will be executed once.\n" +
			"Its result is an event whose causation id is the command's id, or an entry in the dead-letter queue\n" +
			"(credstream queue list).\n" +
			"The queue never contains keys in clear text: --keys-file encrypts them for this command.",
		Args: arguments("COMMAND"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var body map[string]jsontext.Value
			b, err := a.file(file)
			if err != nil {
				return err
			}
			if json.Unmarshal(b, &body) != nil || body == nil {
				return errCommandFile
			}
			if commandID == "" {
				commandID = rand.Text()
			}
			conn, err := a.dial(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			defer conn.Close()
			if keysFile != "" {
				sealed, err := a.sealed(cmd.Context(), conn, args[0], commandID, sealedFor(args[0], body), keysFile)
				if err != nil {
					return err
				}
				body["keys_sealed"] = sealed
			}
			ack, err := conn.Enqueue(cmd.Context(), args[0], body, client.CommandID(commandID))
			if f, ok := errors.AsType[*fault.Error](err); ok && f.Code == admin.ErrSecretInQueue.Code && f.Pointer == "/keys" {
				return f.Withf("Nothing was stored: the file contains keys in clear text. Remove them and give them with --keys-file, which encrypts them.")
			}
			if err != nil {
				return err
			}
			return a.answer(ack, "Command %s is in the queue with the id %s.", args[0], ack.CommandID)
		},
	}
	settings.Bind(cmd.Flags(), &cfg)
	cmd.Flags().StringVar(&file, "file", "", "`FILE` with the command's members as a JSON object; - for standard input")
	cmd.Flags().StringVar(&keysFile, "keys-file", "", "`FILE` with keys as a JSON object; they are encrypted for this command")
	cmd.Flags().StringVar(&commandID, "command-id", "", "command `ID` (idempotency key): a command that is repeated with the same id is executed only once")
	required(cmd, "file")
	return cmd
}

// sealedFor is the target for which the keys of a command are encrypted: the component
// of a new credential, or the id of an existing one.
func sealedFor(command string, body map[string]jsontext.Value) (target string) {
	member := "id"
	if command == "credential.create" {
		member = "component"
	}
	_ = json.Unmarshal(body[member], &target) // the service validates it
	return target
}

// sealed encrypts the keys of a file for a queued command, as a JSON string.
func (a *invocation) sealed(ctx context.Context, conn *client.Conn, command, commandID, target, file string) (jsontext.Value, error) {
	b, err := a.secretFile(file)
	if err != nil {
		return nil, err
	}
	keys, err := client.KeysJSON(b)
	if err != nil {
		return nil, err
	}
	sealed, err := conn.SealKeys(ctx, command, commandID, target, keys)
	if err != nil {
		return nil, err
	}
	return jsontext.Value(strconv.Quote(sealed)), nil
}
