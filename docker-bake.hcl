# docker buildx bake: builds all images for a registry. Bake also reads docker-compose.yml, which defines the contexts,
# Dockerfiles, base images and tags of the targets "server" and "worker". Several platforms and attestations require a
# builder with the docker-container driver. docs/deploy/compose.md, "Images", contains the commands.

variable "VERSION" {
  default = "0.1.0"
}

variable "REVISION" {
  default = "unknown"
}

group "default" {
  targets = ["server", "worker", "worker-cuda"]
}

target "release" {
  args = {
    VERSION  = VERSION
    REVISION = REVISION
  }
  attest = ["type=provenance,mode=max", "type=sbom"]
}

target "server" {
  inherits  = ["release"]
  tags      = ["llava-serve-server:${VERSION}"]
  platforms = ["linux/amd64", "linux/arm64"]
}

target "worker" {
  inherits  = ["release"]
  tags      = ["llava-serve-worker:${VERSION}"]
  platforms = ["linux/amd64", "linux/arm64"] # compiled kernels only on amd64
}

target "worker-cuda" {
  inherits   = ["worker"]
  dockerfile = "deploy/Dockerfile.worker-cuda"
  tags       = ["llava-serve-worker-cuda:${VERSION}"]
  platforms  = ["linux/amd64"]
}
