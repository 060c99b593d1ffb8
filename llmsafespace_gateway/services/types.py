"""The types that services take and return, for doors: which part of the gateway defines one is not theirs."""

from llmsafespace_gateway.backends.base import EgressRule as EgressRule
from llmsafespace_gateway.backends.base import Profile as Profile
from llmsafespace_gateway.backends.base import Quarantined as Quarantined
from llmsafespace_gateway.backends.base import Resources as Resources
from llmsafespace_gateway.backends.base import Runtime as Runtime
from llmsafespace_gateway.backends.base import WarmPoolSpec as WarmPoolSpec
from llmsafespace_gateway.backends.base import WarmPoolStatus as WarmPoolStatus
from llmsafespace_gateway.backends.progress import Progress as Progress
from llmsafespace_gateway.backends.progress import listening as listening
from llmsafespace_gateway.sandboxes import specs
from llmsafespace_gateway.sandboxes.collecting import Collected as Collected
from llmsafespace_gateway.sandboxes.events import Display as Display
from llmsafespace_gateway.sandboxes.events import End as End
from llmsafespace_gateway.sandboxes.events import ErrorEvent as ErrorEvent
from llmsafespace_gateway.sandboxes.events import Event as Event
from llmsafespace_gateway.sandboxes.events import EventUnion as EventUnion
from llmsafespace_gateway.sandboxes.events import Failure as Failure
from llmsafespace_gateway.sandboxes.events import Missed as Missed
from llmsafespace_gateway.sandboxes.events import Stderr as Stderr
from llmsafespace_gateway.sandboxes.events import Stdout as Stdout
from llmsafespace_gateway.sandboxes.events import Update as Update
from llmsafespace_gateway.sandboxes.executions import moment as moment
from llmsafespace_gateway.sandboxes.relay import Codec as Codec
from llmsafespace_gateway.sandboxes.relay import Incoming as Incoming
from llmsafespace_gateway.sandboxes.relay import OddMessage as OddMessage
from llmsafespace_gateway.sandboxes.relay import Relay as Relay
from llmsafespace_gateway.sandboxes.relay import WrongFrame as WrongFrame
from llmsafespace_gateway.sandboxes.requests import CreateSandbox as CreateSandbox
from llmsafespace_gateway.sandboxes.rows import request_digest as request_digest
from llmsafespace_gateway.sandboxes.websocket_frames import BINARY as BINARY
from llmsafespace_gateway.sandboxes.websocket_frames import TEXT as TEXT
from llmsafespace_gateway.store.rows import GrantRow as GrantRow
from llmsafespace_gateway.store.rows import KernelRow as KernelRow
from llmsafespace_gateway.store.rows import KeyRow as KeyRow
from llmsafespace_gateway.store.rows import SandboxRow as SandboxRow
from llmsafespace_gateway.store.rows import SessionRow as SessionRow
from llmsafespace_gateway.store.rows import UserRow as UserRow

check_request = specs.check
