//! What is broken between Berth and the suite.

use runtime_core::spec::ResourcesSpec;
use runtime_core::{
    AgentError, AttachEvent, ContainerInspectDetails, ContainerState, ContainerStats, CopyInOptions, DetailedStats,
    DiffEntry, Event, EventsOptions, ExecEvent, ExecOptions, HistoryEntry, HistoryPruned, HistoryStep, ImageDetails,
    ImageInfo, LogEntry, LogRecord, LogsOptions, PruneResult, PullEvent, PullPolicy, RegistryAuth, RestoreOptions,
    Result, ServiceSpec, StatsSnapshot, TopEntry, VerifyReport, VolumeStatus, WaitOutcome,
};

/// Of the stream of a pull.
pub type PullItem = Result<PullEvent>;

/// What is done to what goes to the backend, and to what comes back. By default nothing.
#[derive(Clone, Copy, Default)]
pub struct Spoils {
    pub spec: Option<fn(&mut ServiceSpec)>,
    /// What it takes for impossible.
    pub refuses: Option<fn(&ServiceSpec) -> bool>,
    pub changes: Option<fn(&mut ResourcesSpec)>,
    pub policy: Option<PullPolicy>,
    pub auth: Option<fn(&mut Option<RegistryAuth>)>,
    pub exec: Option<fn(&mut ExecOptions)>,
    pub logs_options: Option<fn(&mut LogsOptions)>,
    pub events_options: Option<fn(&mut EventsOptions)>,
    pub error: Option<fn(AgentError) -> AgentError>,
    pub outcome: Option<fn(&mut WaitOutcome)>,
    pub state: Option<fn(&mut ContainerState)>,
    pub details: Option<fn(&mut ContainerInspectDetails)>,
    pub stats: Option<fn(&mut ContainerStats)>,
    pub detailed: Option<fn(&mut DetailedStats)>,
    pub logs: Option<fn(Vec<LogEntry>) -> Vec<LogEntry>>,
    pub record: Option<fn(&mut LogRecord)>,
    pub event: Option<fn(Event) -> Option<Event>>,
    pub image: Option<fn(&mut ImageInfo)>,
    pub top: Option<fn(&mut TopEntry)>,
    pub volume: Option<fn(&mut VolumeStatus)>,
    pub pruned: Option<fn(&mut PruneResult)>,
    pub output: Option<fn(&mut String)>,
    pub exec_event: Option<fn(ExecEvent) -> ExecEvent>,
    pub snapshot: Option<fn(&mut StatsSnapshot)>,
    pub attached: Option<fn(AttachEvent) -> Option<AttachEvent>>,
    pub copied: Option<fn(&mut CopyInOptions)>,
    /// What comes of an export.
    pub tar: Option<fn(Vec<u8>) -> Vec<u8>>,
    pub pull_event: Option<fn(PullItem) -> Option<PullItem>>,
    pub inspected: Option<fn(&mut ImageDetails)>,
    pub steps: Option<fn(&mut Vec<HistoryStep>)>,
    pub history: Option<fn(&mut Vec<HistoryEntry>)>,
    pub changed: Option<fn(&mut Vec<DiffEntry>)>,
    pub verified: Option<fn(&mut VerifyReport)>,
    pub restore: Option<fn(&mut RestoreOptions)>,
    pub history_pruned: Option<fn(&mut HistoryPruned)>,
    pub act: Option<Act>,
}

/// What is done otherwise altogether.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// `pull_image` asks for what is here.
    AsksAgain,
    /// A pull that was begun counts as done.
    BelievesInBegunPulls,
    /// Of two pulls at once one fails.
    PullsOneAtATime,
    /// A removal by digest takes one name only.
    RemovesOneName,
    /// A removal takes every image of the repository.
    RemovesTheRepository,
    /// A prune ends the pulls in flight.
    AbortsPulls,
    /// An image by digest is sought by name alone.
    IgnoresDigests,
    /// A start returns before anything runs.
    StartsLater,
    /// A further attempt has a root of its own.
    StartsAfresh,
    /// A stop sends its signal and is done.
    StopsWithASignal,
    /// What is told of an address is not always the same.
    ForgetsAddresses,
    /// An exec whose caller has gone runs on.
    LeavesExecs,
    /// An exec is root's.
    ExecsAsRoot,
    /// The exit code of a signal is its number.
    ExecsWithoutSignals,
    /// `exec_stream` gives what there is at the end.
    BuffersExecs,
    /// All containers have one address.
    SharesAddresses,
    /// The pid is that of this process, whatever runs.
    TellsItsOwnPid,
    /// A second pause is an error.
    PausesOnce,
    PausesNothing,
    /// An exec in a paused container waits until it goes on.
    UnpausesForExecs,
    UnpausesNothing,
    SyncsNothing,
    /// A sync is of every container's volumes.
    SyncsAll,
    /// A stop leaves the volumes to the keeper, who is slow: they are told as they were.
    StopsUnsynced,
    /// What ends by itself is not synced: its volumes are told as they were.
    ExitsUnsynced,
    /// What was stopped is started.
    RestartsWhatWasStopped,
    /// Whoever attaches is not heard.
    AttachesWithoutInput,
    /// An attach to what has ended gives nothing, and no error.
    AttachesToWhatEnded,
    CopiesNothing,
    /// Of two copies in, of which the first is dropped, that comes last.
    CopiesAfterwards,
    /// A link is copied where what it leads to is asked for, and the other way round.
    FollowsLinksOtherwise,
    /// Files come out of what runs, and only there go in.
    CopiesWhatRuns,
    StatsOfNone,
    /// One container after the other, and one that is gone is an error.
    StatsOneByOne,
    /// The interval is nobody's.
    StatsWithoutPause,
    StatsOnce,
    /// A stream of stats has no end.
    StatsForEver,
    /// A pull whose stream is dropped goes on.
    PullsOn,
    LoadsAnything,
    /// A push is told, and not done.
    PushesInName,
    /// With an image go the containers that use it.
    RemovesUsers,
    /// A layer's links lead to the host's files.
    WritesThroughLinks,
    /// All replicas in the host's network have one port.
    GivesOnePort,
    /// What was called before is under way for ever: files in, a load, a claim, a restore.
    CallsOnce,
    PrunesNothing,
    VerifiesNothing,
}
