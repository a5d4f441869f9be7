# lsm-guest in whatever Packer builds: packer build -var package=/path/lsm-guest_0.1.0_amd64.deb lsm.pkr.hcl
# Here with the QEMU builder and Debian's cloud image; the provisioners are the same for any other builder.
packer {
  required_plugins {
    qemu = {
      source  = "github.com/hashicorp/qemu"
      version = ">= 1.1.0"
    }
  }
}

variable "package" {
  type = string
}

variable "image" {
  type    = string
  default = "https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-generic-amd64.qcow2"
}

source "qemu" "debian" {
  iso_url          = var.image
  iso_checksum     = "file:https://cloud.debian.org/images/cloud/bookworm/latest/SHA512SUMS"
  disk_image       = true
  ssh_username     = "debian"
  ssh_password     = "packer"
  shutdown_command = "sudo shutdown -P now"
  # The user that Packer comes in as, gone with the first boot of a copy.
  cd_label = "cidata"
  cd_content = {
    "meta-data" = ""
    "user-data" = "#cloud-config\npassword: packer\nchpasswd: {expire: false}\nssh_pwauth: true\n"
  }
}

build {
  sources = ["source.qemu.debian"]

  provisioner "file" {
    source      = var.package
    destination = "/tmp/${basename(var.package)}"
  }
  provisioner "file" {
    source      = "${path.root}/../provision"
    destination = "/tmp/provision"
  }
  provisioner "shell" {
    execute_command = "sudo {{ .Path }}"
    inline          = ["sh /tmp/provision /tmp/${basename(var.package)}"]
  }
}
