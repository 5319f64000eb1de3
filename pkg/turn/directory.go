package turn

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	// askTime is how long somebody else may take to say who a user is, and how long a stream client is kept waiting for it.
	askTime = 3 * time.Second
	// knownTime is how long what was said is believed, nobodyTime how long it is believed that there is no such user.
	knownTime  = time.Minute
	nobodyTime = 10 * time.Second
	// maxAsking bounds the questions that are open, maxKnown the names that are remembered.
	maxAsking = 32
	maxKnown  = 10_000
)

// Directory says who a user is that neither the configuration nor its files know.
type Directory interface {
	// Password returns the password of a name, or "md5:" and the key; found is false if there is no such user. It may be called
	// concurrently, and is to give up when ctx ends. An error says that it is not known.
	Password(ctx context.Context, name string) (password string, found bool, err error)
}

// asking remembers what a directory has said, and asks it.
type asking struct {
	directory Directory
	realm     string
	log       *zap.Logger

	mu    sync.Mutex // guards what follows
	names map[string]*entry
	open  int
}

// entry is what is known of a name once done is closed.
type entry struct {
	done  chan struct{}
	key   []byte // nil: there is no such user, or it could not be learned
	until time.Time
}

func newAsking(d Directory, realm string, log *zap.Logger) *asking {
	return &asking{directory: d, realm: realm, log: log, names: map[string]*entry{}}
}

// lookup returns the key of a name as far as it is known, and otherwise has it asked for and returns what to wait for; both
// are nil if there are too many questions.
func (a *asking) lookup(name string, now time.Time) (known bool, key []byte, wait *entry) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if e := a.names[name]; e != nil {
		select {
		case <-e.done:
			if now.Before(e.until) {
				return true, e.key, nil
			}
		default:
			return false, nil, e
		}
	}
	if a.open >= maxAsking {
		return false, nil, nil
	}
	if len(a.names) >= maxKnown {
		a.forget(now)
	}
	e := &entry{done: make(chan struct{})}
	a.names[name] = e
	a.open++
	go a.ask(name, e) // ends within askTime
	return false, nil, e
}

// forget makes room: for what is over, else for all but what is being asked. It is called with the mutex.
func (a *asking) forget(now time.Time) {
	for _, all := range []bool{false, true} {
		for name, e := range a.names {
			select {
			case <-e.done:
				if all || now.After(e.until) {
					delete(a.names, name)
				}
			default:
			}
		}
		if len(a.names) < maxKnown {
			return
		}
	}
}

// ask asks for one name.
func (a *asking) ask(name string, e *entry) {
	ctx, cancel := context.WithTimeout(context.Background(), askTime)
	defer cancel()
	password, found, err := a.directory.Password(ctx, name)
	life := nobodyTime
	if err == nil && found {
		if e.key, err = keyOf(name, a.realm, password); err == nil {
			life = knownTime
		}
	}
	if err != nil {
		life = 0
		a.log.Warn("who a user is could not be learned", zap.Error(err))
	}
	e.until = time.Now().Add(life)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.open--
	close(e.done)
}

// lookup returns the keys to try for a name. If it is a directory's to say and has not been said yet, known is false: then there is
// no answer. A client on UDP repeats its request, and more is known then; one on a stream is kept waiting.
func (s *Server) lookup(o origin, name string, m method, now time.Time) (keys []candidate, known bool) {
	keys = s.users.Load().lookup(name, m, now)
	if len(keys) > 0 || s.asking == nil || name == "" {
		return keys, true
	}
	known, key, wait := s.asking.lookup(name, now)
	if wait != nil && o.stream {
		<-wait.done
		known, key, _ = s.asking.lookup(name, time.Now())
	}
	if key != nil {
		return []candidate{{key, name}}, true
	}
	return nil, known
}
