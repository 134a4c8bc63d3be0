"""What a JobSet of launch/gke.yaml must have: a JSON schema of the fields that matter."""


def needs(**properties: object) -> dict:
    """A map that must have these properties, each a schema or the one value it may have."""
    schemas = {name: value if isinstance(value, dict) else {"const": value} for name, value in properties.items()}
    return {"type": "object", "required": list(schemas), "properties": schemas}


def one(schema: dict) -> dict:
    return {"type": "array", "items": schema, "minItems": 1, "maxItems": 1}


def each(*schemas: dict) -> dict:
    return {"type": "array", "prefixItems": list(schemas), "minItems": len(schemas), "maxItems": len(schemas)}


NUMBER = {"type": "integer", "minimum": 1}
NAME = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"}
TPU = {"type": "object", "required": ["google.com/tpu"], "properties": {"google.com/tpu": {"enum": [1, 4, 8]}}}
SELECTOR = {
    "type": "object",
    "required": ["cloud.google.com/gke-tpu-accelerator", "cloud.google.com/gke-tpu-topology"],
    "properties": {"cloud.google.com/gke-tpu-topology": {"pattern": "^[0-9]+(x[0-9]+){1,2}$"}},
    "additionalProperties": {"type": "string"},
}
CONTAINER = needs(
    name="train",
    image={"type": "string"},
    command={"type": "array", "items": {"type": "string"}, "minItems": 5},
    resources=needs(limits=TPU, requests=TPU),
    volumeMounts=each(needs(name="shared-memory", mountPath="/dev/shm"), needs(name="buckets", mountPath="/gcs")),
)
POD = needs(
    restartPolicy="Never",  # what podFailurePolicy asks for
    terminationGracePeriodSeconds={"type": "integer", "minimum": 60},
    nodeSelector=SELECTOR,
    containers=one(CONTAINER),
    volumes=each(
        needs(name="shared-memory", emptyDir=needs(medium="Memory")),
        needs(
            name="buckets",
            csi=needs(driver="gcsfuse.csi.storage.gke.io", volumeAttributes=needs(bucketName="_")),
        ),
    ),
)
BAD_INPUT = needs(action="FailJob", onExitCodes=needs(containerName="train", operator="In", values=one({"const": 2})))
JOB = needs(
    completionMode="Indexed",
    completions=NUMBER,
    parallelism=NUMBER,
    backoffLimit=0,
    podFailurePolicy=needs(rules=one(BAD_INPUT)),
    # Without the annotation the driver refuses the volume.
    template=needs(metadata=needs(annotations=needs(**{"gke-gcsfuse/volumes": "true"})), spec=POD),
)
FAIL = needs(action="FailJobSet", onJobFailureReasons=one({"const": "PodFailurePolicy"}))
JOBSET = needs(
    apiVersion="jobset.x-k8s.io/v1alpha2",
    kind="JobSet",
    metadata=needs(name=NAME, namespace=NAME),
    spec=needs(
        network=needs(enableDNSHostnames=True),
        failurePolicy=needs(maxRestarts={"type": "integer", "minimum": 0}, rules=one(FAIL)),
        replicatedJobs=one(needs(name=NAME, replicas=NUMBER, template=needs(spec=JOB))),
    ),
)
